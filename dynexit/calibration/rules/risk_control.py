"""A point whose risk on new rows is at most alpha, with probability at least 1 - delta."""

from typing import TYPE_CHECKING

import numpy as np

from dynexit.calibration.rules.bounds import p_value
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
from dynexit.core.shapes import HostArray, Int

if TYPE_CHECKING:
    from dynexit.calibration.curve import Curve


def risk_control(alpha: float, delta: float = 0.1, loss: Loss = "gap") -> Rule:
    """Learn then test: the last accepted point of a fixed sequence of tests.

    Points are tested from full depth to the cheapest, until one is not accepted. The null
    hypothesis of a point is that its risk, the mean of a loss in 0..1, exceeds alpha. Its p-value
    is the exact binomial one where losses are 0 or 1, else that of Hoeffding and Bentkus. A point
    is accepted where its p-value is at most delta. Where the loss is a comparison with full depth,
    full depth loses nothing by definition and needs no test.

    Args:
      alpha: the risk accepted, in 0..1, 0 excluded.
      delta: probability, over the draw of the calibration rows, that the risk is higher than
        alpha; between 0 and 1.
      loss: "gap", accuracy lost against full depth, gains of other rows not counted;
        "disagreement" with full depth's answers, which needs no labels; or "error".

    Returns:
      `Rule`. Points must be in the order of testing, and neither they nor their order may come from
      the rows of the curve: `pareto_order` on other rows gives one. `dx.evaluation.calibrate` does
      both, with half of the calibration rows.

    Raises:
      ValueError: an argument out of range.

    Example:
      >>> risk_control(0.01, 0.1).guarantee.split(", ")[0]
      'with probability 0.9 over the calibration rows'

    Source: Angelopoulos et al. 2021, Learn then Test, fixed-sequence testing; Laufer-Goldshtein et
      al. 2023, Pareto testing, for the order; Jazbec et al. 2024, Fast yet Safe, for exits (its
      code takes the first point that fails, not the last that passes).
    """
    fraction(alpha, "alpha", zero=False)
    if not 0 < delta < 1:
        raise ValueError(f"`delta` must lie between 0 and 1, got {delta}")
    checked_loss(loss)

    def pick(curve: "Curve") -> int:
        losses = losses_of(curve, loss)
        accepted = full_depth(curve) if loss != "error" else None
        for k in range(len(losses)):
            if k == accepted:
                continue
            if p_value(losses[k], alpha) > delta:
                break
            accepted = k
        if accepted is None:
            raise NoPoint(
                f"`alpha` of {alpha:g} with `delta` {delta:g} is not met by the first of the "
                f"points, whose risk is {losses[0].mean():.4f} on {curve.rows} rows"
            )
        return accepted

    return Rule(
        pick,
        f"last accepted in a sequence of tests that the risk ({LOSSES[loss]}) is at most {alpha:g}",
        f"with probability {1 - delta:g} over the calibration rows, {LOSSES[loss]}, is at most "
        f"{alpha:g} on new rows drawn alike",
        order=lambda curve: pareto_order(curve, loss),
    )


def pareto_order(curve: "Curve", loss: Loss = "gap") -> Int[HostArray, "k"]:
    """The points that no other point beats in both risk and cost, in the order of `risk_control`.

    The order is from full depth and the most expensive to the cheapest.

    Args:
      curve: of rows that are not those of the test.
      loss: as in `risk_control`.

    Returns:
      int64 `[K']`, indices; full depth is the first.
    """
    risk, full = losses_of(curve, loss).mean(axis=1), full_depth(curve)
    kept: list[int] = []
    least = np.inf
    for k in np.lexsort((risk, curve.cost)):
        if risk[k] < least and k != full:
            kept.append(int(k))
            least = risk[k]
    return np.array(([] if full is None else [full]) + kept[::-1], np.int64)
