"""Exit rules that compare an exit with the one before: a row exits when it has settled.

What is compared is kept in the score's memory, and the score is one number.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dynexit.core.shapes import Array, PyTree, Size
from dynexit.core.types import Criterion
from dynexit.criteria import scores
from dynexit.criteria.combinators import Count, count
from dynexit.criteria.deciding import above_after_first, below, below_after_first
from dynexit.criteria.reading import (
    PerExit,
    Read,
    at,
    beside,
    exits_of,
    highest,
    mask_of,
    read_key,
    read_logits,
    threshold_and_temperature,
    threshold_leaf,
)


def patience(k: Count, read: Read = None) -> Criterion:
    """Exits after k consecutive agreements: the prediction is the same at k + 1 exits.

    Args:
      k: at least 1, scalar; an integer, traced. A NaN among the logits ends the row of agreements.
      read: `read(output) -> logits [b, C]`.

    Returns:
      `Criterion` whose score, bool `[b]`, says whether the prediction is that of the exit before,
      which it remembers, int32 `[b, ...]`; its decision remembers the agreements so far, int32
      `[b]`.

    Raises:
      TypeError: `k` is not an integer.
      ValueError: `k` is below 1 or not a scalar.

    Example:
      >>> import dynexit as dx
      >>> classes = jnp.array([0, 0, 0, 1, 1, 1, 1])
      >>> logits = jax.nn.one_hot(classes, 2)[:, None]  # [E=7, B=1, C=2]
      >>> int(dx.replay(dx.criteria.patience(3), logits).exit_depth[0])
      7

    Source: Zhou et al. 2020, PABEE, section 3.2; there 0 means "never", here it is refused.
    """
    k = count(k, "k")
    if jnp.ndim(k):
        raise ValueError(f"`k` must be a scalar, got shape {jnp.shape(k)}")
    return Criterion(_Agreement(read), Partial(_patient, k), _NoPrediction(read), _no_agreements)


def divergence_below(
    threshold: PerExit, temperature: PerExit = 1.0, read: Read = None
) -> Criterion:
    """Exits when the distribution has settled, KL(p_{i-1} || p_i) < threshold.

    A row does not exit at the first exit.

    Args:
      threshold: nats, scalar or `[E-1]`; 1e-3 in Huginn's released code, 5e-4 in its paper.
      temperature, read: as in `max_probability_above`.

    Returns:
      `Criterion` whose score is the KL, float32 `[b]`, the largest over a row's places; it
      remembers ln p of the exit before, float32 `[b, ..., C]`.

    Example:
      >>> import dynexit as dx
      >>> logits = jnp.array([[[1.0, 0.0]], [[3.0, 0.0]], [[3.1, 0.0]]])
      >>> dx.replay(dx.criteria.divergence_below(1e-3), logits).exit
      Array([2], dtype=int32)

    Source: Geiping et al. 2025, recurrent depth (Huginn), whose first p is uniform.
    """
    threshold, temperature, exits = threshold_and_temperature(threshold, temperature, low=0.0)
    score = Partial(_Divergence(read), temperature)
    return Criterion(score, below_after_first(threshold), _Zeros("logits", read), exits=exits)


def saturation_above(threshold: PerExit, read: Read = None) -> Criterion:
    """Exits when the direction of the hidden state has settled, cos(h_i, h_{i-1}) > threshold.

    A row does not exit at the first exit.

    Args:
      threshold: in -1..1, scalar or `[E-1]`.
      read: `read(output) -> hidden [b, ...]`; None for the key "hidden". All axes but the first
        make one vector.

    Returns:
      `Criterion` whose score is the cosine, float32 `[b]`; it remembers the hidden state of the
      exit before, float32 `[b, ...]`. A vector of zeros has cosine 0.

    Example:
      >>> import dynexit as dx
      >>> hidden = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]], [[0.1, 2.0]]])  # [E=3, B=1, D=2]
      >>> dx.replay(dx.criteria.saturation_above(0.9), {"hidden": hidden}).exit
      Array([2], dtype=int32)

    Source: Schuster et al. 2022, CALM, hidden-state saturation.
    """
    threshold = threshold_leaf(threshold, high=1.0)
    return Criterion(
        _Saturation(read),
        above_after_first(threshold),
        _Zeros("hidden", read),
        exits=exits_of(threshold),
    )


def change_below(threshold: PerExit, read: Read = None) -> Criterion:
    """Exits when the hidden state has settled, ||h_i - h_{i-1}|| / ||h_i|| < threshold.

    A row does not exit at the first exit.

    Args:
      threshold: at least 0 (0 is never passed), scalar or `[E-1]`.
      read: `read(output) -> hidden [b, ...]`; None for the key "hidden". All axes but the first
        make one vector.

    Returns:
      `Criterion` whose score is the relative change, float32 `[b]`; it remembers the hidden state
      of the exit before, float32 `[b, ...]`. A state of zeros, or one that is not finite, has not
      settled.

    Example:
      >>> import dynexit as dx
      >>> hidden = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]], [[0.1, 1.0]]])  # [E=3, B=1, D=2]
      >>> dx.replay(dx.criteria.change_below(0.2), {"hidden": hidden}).exit
      Array([2], dtype=int32)

    Source: the usual criterion of a fixed-point iteration; as an exit rule Geiping et al. 2025
      (recurrent depth), on the latent state.
    """
    threshold = threshold_leaf(threshold, low=0.0)
    return Criterion(
        _Change(read),
        below_after_first(threshold),
        _Zeros("hidden", read),
        exits=exits_of(threshold),
    )


def residual_below(threshold: PerExit, read: Read = None) -> Criterion:
    """Exits when the residual of the step is small, ||f(z) - z|| / ||f(z)|| < threshold.

    A row may exit at the first exit.

    Args:
      threshold: at least 0 (0 is never passed), scalar or `[E-1]`.
      read: `read(output) -> residual [b]`, or `[b, ...]`, all of which must be small; None for the
        key "residual", as `dx.solvers.fixed_point_step` reports it.

    Returns:
      `Criterion` without memory; its score is the residual, the largest over a row's places.

    Example:
      >>> import dynexit as dx
      >>> outputs = {"residual": jnp.array([[0.5], [0.02], [0.001]])}  # [E=3, B=1]
      >>> dx.replay(dx.criteria.residual_below(0.05), outputs).exit
      Array([1], dtype=int32)

    Source: Bai et al. 2019, deep equilibrium models; there the whole batch ends at once.
    """
    threshold = threshold_leaf(threshold, low=0.0)
    return Criterion(_Residual(read), below(threshold), exits=exits_of(threshold))


@dataclasses.dataclass(frozen=True)
class _NoPrediction:
    read: Read

    def __call__(self, batch: Size, output: PyTree) -> Array:
        places = jax.eval_shape(lambda o: read_logits(o, self.read), output).shape[:-1]
        return jnp.full(places, -1, jnp.int32)


def _no_agreements(batch: Size) -> Array:
    return jnp.zeros(batch, jnp.int32)


@dataclasses.dataclass(frozen=True)
class _Zeros:
    key: str
    read: Read

    def __call__(self, batch: Size, output: PyTree) -> Array:
        shape = jax.eval_shape(lambda o: read_key(o, self.key, self.read), output).shape
        return jnp.zeros(shape, jnp.float32)


@dataclasses.dataclass(frozen=True)
class _Agreement:
    read: Read

    def __call__(self, i: Array, output: PyTree, memory: Array) -> tuple[Array, Array]:
        logits = read_logits(output, self.read)
        prediction = jnp.where(
            jnp.isnan(logits).any(-1), -1, jnp.argmax(logits, axis=-1).astype(jnp.int32)
        )
        agrees = (prediction == memory) & (prediction >= 0)
        mask = mask_of(output, agrees)
        agrees = agrees if mask is None else agrees | ~mask
        return agrees.all(axis=tuple(range(1, agrees.ndim))), prediction


def _patient(k: Array, i: Array, agrees: Array, agreements: Array) -> tuple[Array, Array]:
    agreements = jnp.where(agrees, agreements + 1, 0)
    return agreements >= k, agreements


@dataclasses.dataclass(frozen=True)
class _Divergence:
    read: Read

    def __call__(
        self, temperature: Array, i: Array, output: PyTree, memory: Array
    ) -> tuple[Array, Array]:
        logits = read_logits(output, self.read).astype(jnp.float32)
        log_p = jax.nn.log_softmax(logits / beside(at(temperature, i), logits))
        return highest(scores.kl(memory, log_p), output), log_p


@dataclasses.dataclass(frozen=True)
class _Saturation:
    read: Read

    def __call__(self, i: Array, output: PyTree, memory: Array) -> tuple[Array, Array]:
        hidden = _hidden(output, self.read)
        new, old = hidden.reshape(hidden.shape[0], -1), memory.reshape(memory.shape[0], -1)
        norms = jnp.linalg.norm(new, axis=-1) * jnp.linalg.norm(old, axis=-1)
        return (new * old).sum(-1) / jnp.where(norms == 0, 1.0, norms), hidden


@dataclasses.dataclass(frozen=True)
class _Change:
    read: Read

    def __call__(self, i: Array, output: PyTree, memory: Array) -> tuple[Array, Array]:
        hidden = _hidden(output, self.read)
        new, old = hidden.reshape(hidden.shape[0], -1), memory.reshape(memory.shape[0], -1)
        moved, size = jnp.linalg.norm(new - old, axis=-1), jnp.linalg.norm(new, axis=-1)
        usable = jnp.isfinite(size) & jnp.isfinite(moved) & (size > 0)
        change = jnp.where(usable, moved, 1.0) / jnp.where(usable, size, 1.0)
        unsettled = jnp.where(jnp.isnan(size), size, jnp.finfo(jnp.float32).max)
        return jnp.where(usable, change, unsettled), hidden


@dataclasses.dataclass(frozen=True)
class _Residual:
    read: Read

    def __call__(self, i: Array, output: PyTree, memory: PyTree) -> tuple[Array, PyTree]:
        residual = read_key(output, "residual", self.read).astype(jnp.float32)
        return highest(residual, output), memory


def _hidden(output: PyTree, read: Read) -> Array:
    """The hidden state `[b, ...]` in float32, with zeros at padded places."""
    hidden = read_key(output, "hidden", read).astype(jnp.float32)
    mask = mask_of(output, hidden)
    return hidden if mask is None else jnp.where(mask, hidden, 0.0)
