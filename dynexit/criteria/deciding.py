"""Decisions on a score: above or below a threshold.

They are module-level functions, so that the static parts of two rules compare equal.
"""

from jax.tree_util import Partial

from dynexit.core.shapes import Array, Float, PyTree
from dynexit.criteria.reading import at


def above(threshold: Float[Array, "..."]) -> Partial:
    """`decide` of a rule that exits where score > threshold; scalar or `[E-1]`."""
    return Partial(_above, threshold)


def below(threshold: Float[Array, "..."]) -> Partial:
    """`decide` of a rule that exits where score < threshold."""
    return Partial(_below, threshold)


def above_after_first(threshold: Float[Array, "..."]) -> Partial:
    """`above`, and never at the first exit, which has no exit before it to be compared with."""
    return Partial(_above_after_first, threshold)


def below_after_first(threshold: Float[Array, "..."]) -> Partial:
    """`below`, and never at the first exit, which has no exit before it to be compared with."""
    return Partial(_below_after_first, threshold)


def _above(threshold: Array, i: Array, score: Array, memory: PyTree) -> tuple[Array, PyTree]:
    return score > at(threshold, i), memory


def _below(threshold: Array, i: Array, score: Array, memory: PyTree) -> tuple[Array, PyTree]:
    return score < at(threshold, i), memory


def _above_after_first(
    threshold: Array, i: Array, score: Array, memory: PyTree
) -> tuple[Array, PyTree]:
    return (score > at(threshold, i)) & (i > 0), memory


def _below_after_first(
    threshold: Array, i: Array, score: Array, memory: PyTree
) -> tuple[Array, PyTree]:
    return (score < at(threshold, i)) & (i > 0), memory
