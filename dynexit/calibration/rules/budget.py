"""The most accurate point of at most a given cost."""

from typing import TYPE_CHECKING

import numpy as np

from dynexit.calibration.rules.rule import SLACK, NoPoint, Rule, fraction

if TYPE_CHECKING:
    from dynexit.calibration.curve import Curve


def budget(share: float) -> Rule:
    """Most accurate with mean cost <= share x cost of full depth; of equal accuracies the cheaper.

    Args:
      share: fraction of full depth's FLOPs, in 0..1, 0 excluded.

    Returns:
      `Rule`.

    Raises:
      ValueError: `share` out of range.

    Example:
      >>> budget(0.5).words
      "most accurate that costs at most 0.5 of full depth's FLOPs"

    Source: Huang et al. 2018, MSDNet, budgeted batch.
    """
    fraction(share, "share", zero=False)

    def pick(curve: "Curve") -> int:
        allowed = curve.cost <= share * curve.cost_full * (1 + SLACK)
        if not allowed.any():
            least = np.ceil(1e4 * curve.cost.min() / curve.cost_full) / 1e4
            raise NoPoint(
                f"`budget` of {share:g} of full depth's FLOPs cannot be met: the cheapest point "
                f"costs {least:.4f}. Pass at least that, or add an earlier exit to the network"
            )
        order = np.lexsort((curve.cost, -curve.accuracy))
        return int(order[allowed[order]][0])

    return Rule(
        pick,
        f"most accurate that costs at most {share:g} of full depth's FLOPs",
        "none on new rows: the mean cost holds on the calibration rows, and new rows of the same "
        "kind differ by their sampling error",
    )
