"""Exit rules by the certainty of the network, and exits at given depths.

A threshold is a scalar, or `[E-1]` with one value an exit (the last exit takes every row); a
temperature is a scalar or `[E]`. Both are traced, so changing them never recompiles. Thresholds
belong to the decision, temperatures to the score. Comparisons are strict and scores float32, so a
row whose score is NaN does not exit.

A rule reads the logits `[b, C]` where the output is a bare array, and else the output's key
"logits", "gate", "halt_logit", "hidden" or "residual". `read(output)` replaces that; pass the same
function each time, for another function is another program. Where a row has an answer at each of
its places (logits `[b, ..., C]`), it exits once every place would. Where an output has the entry
"mask", bool `[b, ...]`, places at which it is false (padding) are not considered.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dynexit.core.shapes import AnyArray, Array, Int, PyTree, Size
from dynexit.core.types import Criterion
from dynexit.criteria import scores
from dynexit.criteria.combinators import Count, count
from dynexit.criteria.deciding import above, below
from dynexit.criteria.reading import (
    PerExit,
    Read,
    at,
    highest,
    lowest,
    read_logits,
    threshold_and_temperature,
)


def max_probability_above(
    threshold: PerExit, temperature: PerExit = 1.0, read: Read = None
) -> Criterion:
    """Exits when the likeliest class is likely enough, max_c p_c > threshold.

    Args:
      threshold: in 0..1, scalar or `[E-1]`.
      temperature: by which logits are divided, scalar or `[E]`.
      read: `read(output) -> logits [b, C]`.

    Returns:
      `Criterion` without memory.

    Raises:
      ValueError: a NaN, a wrong shape, a temperature not above 0, a finite threshold beyond the
        range of the score; in all the rules below too.

    Example:
      >>> import dynexit as dx
      >>> logits = jnp.array([[[1.0, 0.0]], [[3.0, 0.0]], [[9.0, 0.0]]])  # [E=3, B=1, C=2]
      >>> dx.replay(dx.criteria.max_probability_above(0.9), logits).exit
      Array([1], dtype=int32)

    Source: Kaya et al. 2019, Shallow-Deep Networks; there with >=.
    """
    threshold, temperature, exits = threshold_and_temperature(threshold, temperature, high=1.0)
    score = Partial(_Score(scores.max_probability, lowest, read), temperature)
    return Criterion(score, above(threshold), exits=exits)


def entropy_below(threshold: PerExit, temperature: PerExit = 1.0, read: Read = None) -> Criterion:
    """Exits when the entropy is low enough, -sum_c p_c ln p_c < threshold.

    Args:
      threshold: nats in 0..ln C, scalar or `[E-1]`; for FastBERT's normalised entropy multiply by
        ln C.
      temperature, read: as in `max_probability_above`.

    Returns:
      `Criterion` without memory.

    Example:
      >>> import dynexit as dx
      >>> logits = jnp.array([[[1.0, 0.0]], [[3.0, 0.0]], [[9.0, 0.0]]])
      >>> dx.replay(dx.criteria.entropy_below(0.2), logits).exit
      Array([1], dtype=int32)

    Source: Teerapittayanon et al. 2016, BranchyNet, algorithm 1; Xin et al. 2020, DeeBERT.
    """
    threshold, temperature, exits = threshold_and_temperature(threshold, temperature, low=0.0)
    score = Partial(_Score(scores.entropy, highest, read), temperature)
    return Criterion(score, below(threshold), exits=exits)


def margin_above(threshold: PerExit, temperature: PerExit = 1.0, read: Read = None) -> Criterion:
    """Exits when the best class is far enough ahead of the second, p_(1) - p_(2) > threshold.

    Args:
      threshold: in 0..1, scalar or `[E-1]`.
      temperature, read: as in `max_probability_above`.

    Returns:
      `Criterion` without memory.

    Example:
      >>> import dynexit as dx
      >>> logits = jnp.array([[[1.0, 0.0]], [[3.0, 0.0]], [[9.0, 0.0]]])
      >>> dx.replay(dx.criteria.margin_above(0.95), logits).exit
      Array([2], dtype=int32)

    Source: Schuster et al. 2022, CALM, softmax response; there with >=.
    """
    threshold, temperature, exits = threshold_and_temperature(threshold, temperature, high=1.0)
    score = Partial(_Score(scores.margin, lowest, read), temperature)
    return Criterion(score, above(threshold), exits=exits)


def energy_below(threshold: PerExit, temperature: PerExit = 1.0, read: Read = None) -> Criterion:
    """Exits when the free energy is low enough, -T ln sum_c exp(z_c / T) < threshold.

    Args:
      threshold: scalar or `[E-1]`; depends on the scale of each head's logits, so one value an exit
        is advisable.
      temperature, read: as in `max_probability_above`.

    Returns:
      `Criterion` without memory.

    Example:
      >>> import dynexit as dx
      >>> logits = jnp.array([[[1.0, 0.0]], [[3.0, 0.0]], [[9.0, 0.0]]])
      >>> dx.replay(dx.criteria.energy_below(-2.0), logits).exit
      Array([1], dtype=int32)

    Source: Akbari et al. 2021, EBJR, whose score is the negative of this, applied to the exits of
      one network.
    """
    threshold, temperature, exits = threshold_and_temperature(threshold, temperature)
    score = Partial(_Score(scores.energy, highest, read), temperature)
    return Criterion(score, below(threshold), exits=exits)


def at_depth(depths: Count | Int[AnyArray, "B"]) -> Criterion:
    """Exits each row after a given number of exits: an oracle's depths, a replayed policy, a test.

    Args:
      depths: exits evaluated, 1..E, integers `[B]` or scalar for all rows; beyond E means the last.
        In blocks where an exit follows every block.

    Returns:
      `Criterion` whose decision remembers the depths, int32 `[b]`; its score is 0.

    Raises:
      TypeError: not integers.
      ValueError: below 1, or of more than one axis.

    Example:
      >>> import dynexit as dx
      >>> dx.replay(dx.criteria.at_depth(jnp.array([2, 1])), jnp.zeros((3, 2, 4))).exit_depth
      Array([2, 1], dtype=int32)
    """
    depths = count(depths, "depths")
    if jnp.ndim(depths) > 1:
        raise ValueError(
            f"`depths` must be a scalar or have shape [B], got shape {jnp.shape(depths)}"
        )
    return Criterion(_no_score, _at_depth, init_decide=Partial(_first_depths, depths))


@dataclasses.dataclass(frozen=True)
class _Score:
    score: Callable[[Array, Array], Array]
    over_places: Callable[[Array, PyTree], Array]
    read: Read

    def __call__(
        self, temperature: Array, i: Array, output: PyTree, memory: PyTree
    ) -> tuple[Array, PyTree]:
        value = self.score(read_logits(output, self.read), at(temperature, i))
        return self.over_places(value, output), memory


def _first_depths(depths: Array, batch: Size) -> Array:
    return depths if depths.ndim else jnp.full(batch, depths)


def _no_score(i: Array, output: PyTree, memory: PyTree) -> tuple[Array, PyTree]:
    return jnp.zeros(jax.tree.leaves(output)[0].shape[0], jnp.float32), memory


def _at_depth(i: Array, score: Array, memory: Array) -> tuple[Array, Array]:
    return i + 1 >= memory, memory
