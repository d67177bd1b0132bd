"""A point whose risk on new rows is at most alpha on average."""

from typing import TYPE_CHECKING

import numpy as np

from dynexit.calibration.rules.risk_control import pareto_order
from dynexit.calibration.rules.rule import (
    LOSSES,
    Loss,
    NoPoint,
    Rule,
    checked_loss,
    fraction,
    full_depth,
    losses_of,
)

if TYPE_CHECKING:
    from dynexit.calibration.curve import Curve


def conformal_risk(alpha: float, loss: Loss = "gap") -> Rule:
    """Conformal risk control: the last point up to which (n R + 1) / (n + 1) <= alpha.

    Points are in a fixed order from full depth to the cheapest. R is the mean over the n rows of
    each row's largest loss so far in the order, so that it cannot fall along the order.

    Args:
      alpha: the risk accepted on average, in 0..1, 0 excluded.
      loss: as in `risk_control`.

    Returns:
      `Rule`; the order of the points is that of `risk_control`.

    Raises:
      ValueError: an argument out of range.

    Example:
      >>> conformal_risk(0.05, "error").words
      'last up to which the conformal risk (fraction of rows answered wrong) is at most 0.05'

    Source: Angelopoulos et al. 2022, Conformal risk control; Jazbec et al. 2024 for exits.
    """
    fraction(alpha, "alpha", zero=False)
    checked_loss(loss)

    def pick(curve: "Curve") -> int:
        losses = np.maximum.accumulate(losses_of(curve, loss), axis=0)
        rows = curve.rows
        holds = (losses.sum(axis=1) + 1) / (rows + 1) <= alpha + 1e-12
        count = int(np.argmin(np.append(holds, False)))
        if count:
            return count - 1
        full = full_depth(curve) if loss != "error" else None
        if full is None:
            raise NoPoint(
                f"`alpha` of {alpha:g} is not met by the first of the points, whose risk is "
                f"{losses[0].mean():.4f} on {rows} rows"
            )
        return full

    return Rule(
        pick,
        f"last up to which the conformal risk ({LOSSES[loss]}) is at most {alpha:g}",
        f"on average over calibration rows and new rows drawn alike, {LOSSES[loss]}, is at most "
        f"{alpha:g}",
        order=lambda curve: pareto_order(curve, loss),
    )
