"""The cheapest point that loses at most a given accuracy."""

from typing import TYPE_CHECKING

import numpy as np

from dynexit.calibration.rules.rule import SLACK, NoPoint, Rule, fraction

if TYPE_CHECKING:
    from dynexit.calibration.curve import Curve


def accept_loss(loss: float, max_negative_flips: float | None = None) -> Rule:
    """Cheapest with accuracy >= accuracy of full depth - loss; of equal costs the more accurate.

    Args:
      loss: fraction of the rows, in 0..1.
      max_negative_flips: fraction of the rows, in 0..1, that may be right at full depth and wrong
        at the point; gains of other rows are not counted. It is stricter, for splits so small
        that gains and losses cancel by chance. None for any.

    Returns:
      `Rule`.

    Raises:
      ValueError: a fraction out of range.

    Example:
      >>> accept_loss(0.005).words
      "cheapest that loses at most 0.005 of full depth's accuracy"

    Source: Kaya et al. 2019, SDN, with the loss absolute and not relative.
    """
    fraction(loss, "loss")
    flips = (
        1.0 if max_negative_flips is None else fraction(max_negative_flips, "max_negative_flips")
    )

    def pick(curve: "Curve") -> int:
        accuracy, full = curve.accuracy, curve.accuracy_full
        allowed = (accuracy >= full - loss - SLACK) & (curve.flips <= flips + SLACK)
        if not allowed.any():
            raise NoPoint(
                f"`curve` holds no point that loses at most {loss:g} of accuracy {full:.4f}; the "
                f"best has {accuracy.max():.4f}. Full depth must be among the points"
            )
        order = np.lexsort((-accuracy, curve.cost))
        return int(order[allowed[order]][0])

    turned = (
        ""
        if max_negative_flips is None
        else f" and turns at most {flips:g} of the rows from right to wrong"
    )
    return Rule(
        pick,
        f"cheapest that loses at most {loss:g} of full depth's accuracy{turned}",
        "none on new rows: the loss holds on the calibration rows, and is exceeded on about half "
        "of all splits where it is near the limit",
    )
