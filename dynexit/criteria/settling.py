"""Exit rules that compare an exit with the one before, or read how far a step moved: the row leaves
when it has settled.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dynexit.core.types import Array, Criterion, PyTree
from dynexit.criteria import scores
from dynexit.criteria.combinators import count
from dynexit.criteria.reading import (
    Read,
    at,
    at_every_place,
    beside,
    exits_of,
    no_memory,
    read_key,
    read_logits,
    threshold_and_temperature,
    threshold_leaf,
)


def patience(k: Any, read: Read = None) -> Criterion:
    """Leaves after k agreements in a row: the prediction has been the same at k + 1 exits.

    Args:
      k: at least 1, scalar; an integer, traced. A NaN among the logits ends the row of agreements.
      read: `read(output) -> logits [b, C]`.

    Returns:
      `Criterion` that remembers the last prediction, int32 `[b, ...]`, and the agreements so far,
      int32 `[b]`.

    Raises:
      TypeError: `k` is not an integer.
      ValueError: `k` is below 1 or not a scalar.

    Example:
      >>> import dynexit as dx
      >>> classes = jnp.array([0, 0, 0, 1, 1, 1, 1])
      >>> logits = jax.nn.one_hot(classes, 2)[:, None]  # [E=7, B=1, C=2]
      >>> int(dx.replay(dx.criteria.patience(3), logits).exit_depth[0])
      7

    Source: Zhou et al. 2020, PABEE, section 3.2; there 0 stands for "never", here it is refused.
    """
    k = count(k, "k")
    if jnp.ndim(k):
        raise ValueError(f"`k` must be a scalar, got shape {jnp.shape(k)}")
    return Criterion(Partial(_FirstStreak(read)), Partial(_Patience(read), k), templated=True)


def divergence_below(threshold: Any, temperature: Any = 1.0, read: Read = None) -> Criterion:
    """Leaves when the distribution has settled, KL(p_{i-1} || p_i) < threshold; never at the first
    exit.

    Args:
      threshold: nats, scalar or `[E-1]`; 1e-3 in Huginn's released code, 5e-4 in its paper.
      temperature, read: as in `max_probability_above`.

    Returns:
      `Criterion` that remembers ln p of the exit before, float32 `[b, ..., C]`.

    Example:
      >>> import dynexit as dx
      >>> logits = jnp.array([[[1.0, 0.0]], [[3.0, 0.0]], [[3.1, 0.0]]])
      >>> dx.replay(dx.criteria.divergence_below(1e-3), logits).exit
      Array([2], dtype=int32)

    Source: Geiping et al. 2025, recurrent depth (Huginn), whose first p is uniform so that it never
      leaves at once either.
    """
    threshold, temperature, exits = threshold_and_temperature(threshold, temperature)
    update = Partial(_Divergence(read), threshold, temperature)
    return Criterion(Partial(_Template("logits", read)), update, exits=exits, templated=True)


def saturation_above(threshold: Any, read: Read = None) -> Criterion:
    """Leaves when the hidden state has stopped turning, cos(h_i, h_{i-1}) > threshold; never at the
    first exit.

    Args:
      threshold: in -1..1, scalar or `[E-1]`.
      read: `read(output) -> hidden [b, ...]`; None for the key "hidden". All axes but the first
        make one vector.

    Returns:
      `Criterion` that remembers the hidden state of the exit before, float32 `[b, ...]`. A vector
      of zeros has cosine 0.

    Example:
      >>> import dynexit as dx
      >>> hidden = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]], [[0.1, 2.0]]])  # [E=3, B=1, D=2]
      >>> dx.replay(dx.criteria.saturation_above(0.9), {"hidden": hidden}).exit
      Array([2], dtype=int32)

    Source: Schuster et al. 2022, CALM, hidden-state saturation.
    """
    threshold = threshold_leaf(threshold)
    update = Partial(_Saturation(read), threshold)
    return Criterion(
        Partial(_Template("hidden", read)), update, exits=exits_of(threshold), templated=True
    )


def change_below(threshold: Any, read: Read = None) -> Criterion:
    """Leaves when the hidden state has stopped moving, ||h_i - h_{i-1}|| / ||h_i|| < threshold;
    never at the first exit.

    Args:
      threshold: at least 0 (0 is never passed), scalar or `[E-1]`.
      read: `read(output) -> hidden [b, ...]`; None for the key "hidden". All axes but the first
        make one vector.

    Returns:
      `Criterion` that remembers the hidden state of the exit before, float32 `[b, ...]`.

    Example:
      >>> import dynexit as dx
      >>> hidden = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]], [[0.1, 1.0]]])  # [E=3, B=1, D=2]
      >>> dx.replay(dx.criteria.change_below(0.2), {"hidden": hidden}).exit
      Array([2], dtype=int32)

    Source: the usual stop of a fixed-point iteration; as an exit rule Geiping et al. 2025
      (recurrent depth), on the latent state.
    """
    threshold = threshold_leaf(threshold)
    update = Partial(_Change(read), threshold)
    return Criterion(
        Partial(_Template("hidden", read)), update, exits=exits_of(threshold), templated=True
    )


def residual_below(threshold: Any, read: Read = None) -> Criterion:
    """Leaves when the step's own residual is small enough, ||f(z) - z|| / ||f(z)|| < threshold; may
    leave at the first exit.

    Args:
      threshold: at least 0 (0 is never passed), scalar or `[E-1]`.
      read: `read(output) -> residual [b]`, or `[b, ...]`, all of which must be small; None for the
        key "residual", as `dx.solvers.fixed_point_step` reports it.

    Returns:
      `Criterion` without memory.

    Example:
      >>> import dynexit as dx
      >>> outputs = {"residual": jnp.array([[0.5], [0.02], [0.001]])}  # [E=3, B=1]
      >>> dx.replay(dx.criteria.residual_below(0.05), outputs).exit
      Array([1], dtype=int32)

    Source: Bai et al. 2019, deep equilibrium models; there one stop for the whole batch.
    """
    threshold = threshold_leaf(threshold)
    return Criterion(no_memory, Partial(_Residual(read), threshold), exits=exits_of(threshold))


class Streak(NamedTuple):
    """What `patience` remembers: the last prediction, int32 `[b, ...]`, -1 for none, and the
    agreements so far, int32 `[b]`.
    """

    prediction: Array
    agreements: Array


@dataclasses.dataclass(frozen=True)
class _FirstStreak:
    read: Read

    def __call__(self, batch: int, output: PyTree) -> Streak:
        places = jax.eval_shape(lambda o: read_logits(o, self.read), output).shape[:-1]
        return Streak(jnp.full(places, -1, jnp.int32), jnp.zeros(batch, jnp.int32))


@dataclasses.dataclass(frozen=True)
class _Template:
    key: str
    read: Read

    def __call__(self, batch: int, output: PyTree) -> Array:
        shape = jax.eval_shape(lambda o: read_key(o, self.key, self.read), output).shape
        return jnp.zeros(shape, jnp.float32)


@dataclasses.dataclass(frozen=True)
class _Patience:
    read: Read

    def __call__(self, k, i, output, memory):
        logits = read_logits(output, self.read)
        prediction = jnp.where(
            jnp.isnan(logits).any(-1), -1, jnp.argmax(logits, axis=-1).astype(jnp.int32)
        )
        agrees = at_every_place((prediction == memory.prediction) & (prediction >= 0))
        agreements = jnp.where(agrees, memory.agreements + 1, 0)
        return agreements >= k, Streak(prediction, agreements)


@dataclasses.dataclass(frozen=True)
class _Divergence:
    read: Read

    def __call__(self, threshold, temperature, i, output, memory):
        logits = read_logits(output, self.read).astype(jnp.float32)
        log_p = jax.nn.log_softmax(logits / beside(at(temperature, i), logits))
        divergence = scores.kl(memory, log_p)
        return at_every_place(divergence < beside(at(threshold, i), divergence)) & (i > 0), log_p


@dataclasses.dataclass(frozen=True)
class _Saturation:
    read: Read

    def __call__(self, threshold, i, output, memory):
        hidden = read_key(output, "hidden", self.read).astype(jnp.float32)
        new, old = hidden.reshape(hidden.shape[0], -1), memory.reshape(memory.shape[0], -1)
        norms = jnp.linalg.norm(new, axis=-1) * jnp.linalg.norm(old, axis=-1)
        cosine = (new * old).sum(-1) / jnp.where(norms == 0, 1.0, norms)
        return (cosine > at(threshold, i)) & (i > 0), hidden


@dataclasses.dataclass(frozen=True)
class _Change:
    read: Read

    def __call__(self, threshold, i, output, memory):
        hidden = read_key(output, "hidden", self.read).astype(jnp.float32)
        new, old = hidden.reshape(hidden.shape[0], -1), memory.reshape(memory.shape[0], -1)
        moved, size = jnp.linalg.norm(new - old, axis=-1), jnp.linalg.norm(new, axis=-1)
        return (moved < at(threshold, i) * size) & jnp.isfinite(size) & (
            i > 0
        ), hidden  # a state that runs away has not settled


@dataclasses.dataclass(frozen=True)
class _Residual:
    read: Read

    def __call__(self, threshold, i, output, memory):
        residual = read_key(output, "residual", self.read).astype(jnp.float32)
        return at_every_place(residual < beside(at(threshold, i), residual)), memory
