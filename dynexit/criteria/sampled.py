"""Exits drawn at random with the probabilities that the network gives: PonderNet's own rule at
inference.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dynexit.core.types import Array, Criterion
from dynexit.criteria.reading import Read, read_per_row


def halting_sampled(key: Array, read: Read = None) -> Criterion:
    """Leaves at a step drawn from the halting distribution, P(n) = lambda_n prod_{i<n} (1 -
    lambda_i); the last takes what is left.

    One u ~ U[0, 1) a row, drawn from the key and the row's place in the batch or queue; the row
    leaves at the first n with F_n > u. That is a Bernoulli(lambda_n) at every step, drawn at once.
    So a row's exit depends on its own outputs, the key and its place, and neither on the other rows
    nor on the schedule.

    Args:
      key: of `jax.random.key`; the same key draws the same again.
      read: `read(output) -> logit [b]` with lambda = sigmoid(logit); None for the key "halt_logit".

    Returns:
      `Criterion` that remembers ln(1 - F_n) and ln(1 - u), float32 `[b]` both.

    Raises:
      TypeError: `key` is not of `jax.random.key`.

    Example:
      >>> import dynexit as dx
      >>> halting = jnp.array([0.2, 0.5, 0.5, 1.0])  # p = 0.2, 0.4, 0.2, 0.2
      >>> outputs = {"halt_logit": jnp.tile(jax.scipy.special.logit(halting)[:, None], (1, 10_000))}
      >>> exits = dx.replay(dx.criteria.halting_sampled(jax.random.key(0)), outputs).exit
      >>> [round(float((exits == n).mean()), 1) for n in range(4)]
      [0.2, 0.4, 0.2, 0.2]

    Source: Banino et al. 2021, PonderNet. `cumulative_halting_above` is the deterministic rule,
      `halting_mixture` of the
    objectives the answer in expectation.
    """
    if (
        not isinstance(key, jax.Array)
        or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        or key.shape
    ):
        raise TypeError(f"`key` must be one key of jax.random.key, got {type(key).__name__}")
    return Criterion(
        Partial(_draw, jax.random.bits(key, (2,), jnp.uint32)), Partial(_Sampled(read))
    )


def _draw(seed: Array, batch: int) -> tuple[Array, Array]:
    """Nothing survived away yet, and ln(1 - u) of every row."""
    key = jax.random.wrap_key_data(seed, impl="threefry2x32")
    u = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row)))(jnp.arange(batch))
    return jnp.zeros(batch, jnp.float32), jnp.log1p(-u)


@dataclasses.dataclass(frozen=True)
class _Sampled:
    read: Read

    def __call__(self, i, output, memory):
        log_survival, level = memory
        log_survival = log_survival + jax.nn.log_sigmoid(
            -read_per_row(output, "halt_logit", self.read)
        )
        return log_survival < level, (log_survival, level)
