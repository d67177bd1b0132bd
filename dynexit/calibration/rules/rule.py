"""The type of rules, and the losses that rules with a guarantee bound."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np

from dynexit.core.shapes import Float, HostArray, Int

if TYPE_CHECKING:
    from dynexit.calibration.curve import Curve

SLACK = 1e-9  # for accuracies that are equal but for float64 rounding
Loss: TypeAlias = Literal["gap", "disagreement", "error"]


class NoPoint(ValueError):
    """No point of the curve meets the rule."""


class Rule(NamedTuple):
    """Chooses an operating point from a `Curve`.

    Attributes:
      pick: `pick(curve) -> index` into its points; raises `NoPoint`.
      words: the choice in words, e.g. "cheapest that loses at most 0.005 of full depth's accuracy".
      guarantee: what the rule guarantees on new rows, in words.
      order: where the guarantee needs points in an order that was found on other rows than those of
        the curve, `order(curve of the other rows) -> indices [K']`. `dx.evaluation.calibrate` then
        takes candidates and order from half of the calibration rows, and the curve from the rest.
    """

    pick: Callable[["Curve"], int]
    words: str
    guarantee: str
    order: Callable[["Curve"], Int[HostArray, "k"]] | None = None


def fraction(value: float, name: str, zero: bool = True) -> float:
    """A number in 0..1; 0 excluded without `zero`.

    Raises:
      ValueError: out of range.
    """
    if not (0 <= value <= 1) or (value == 0 and not zero):
        raise ValueError(f"`{name}` must lie in 0..1{'' if zero else ', 0 excluded'}, got {value}")
    return value


def losses_of(curve: "Curve", loss: Loss) -> Float[HostArray, "K M"]:
    """The losses of the rows at every point, float64 `[K, M]` in 0..1.

    "gap" is the accuracy that a row loses against full depth, "disagreement" whether its answer is
    another one (it needs no labels), "error" how wrong it is.

    Raises:
      ValueError: scores outside 0..1, for which there is no bound.
    """
    if loss == "disagreement":
        return 1.0 - curve.agrees
    if curve.right.min() < 0 or max(curve.right.max(), curve.right_full.max()) > 1:
        raise ValueError(
            f"`loss` {loss!r} needs scores in 0..1, and `Method.score` gives "
            f"{curve.right.min():g}..{curve.right.max():g}"
        )
    if loss == "error":
        return 1.0 - curve.right.astype(np.float64)
    return np.maximum(curve.right_full.astype(np.float64) - curve.right, 0.0)


def checked_loss(loss: Loss) -> Loss:
    """Validates the name of a loss and returns it.

    Raises:
      ValueError: another name.
    """
    if loss not in ("gap", "disagreement", "error"):
        raise ValueError(f"`loss` must be 'gap', 'disagreement' or 'error', got {loss!r}")
    return loss


LOSSES = {
    "gap": "accuracy lost against full depth, gains of other rows not counted",
    "disagreement": "fraction of rows answered otherwise than at full depth",
    "error": "fraction of rows answered wrong",
}


def full_depth(curve: "Curve") -> int | None:
    """The first point at which every row exits at the last exit, or None."""
    found = np.flatnonzero((curve.exit == curve.exits - 1).all(axis=1))
    return int(found[0]) if found.size else None
