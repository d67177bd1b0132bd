"""Exits drawn at random with the network's halting probabilities, as in PonderNet."""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dynexit.core.shapes import Array, Key, Size
from dynexit.core.types import Criterion
from dynexit.criteria.halting import LogSurvival, zeros
from dynexit.criteria.reading import Read


def halting_sampled(key: Key[Array, ""], read: Read = None) -> Criterion:
    """Exits at a step drawn from the halting distribution.

    P(n) = lambda_n prod_{i<n} (1 - lambda_i); the last exit takes the rest of the probability.

    One u ~ U[0, 1) per row is drawn from the key and the row's index in the batch or queue; the row
    exits at the first n with F_n > u. That is a Bernoulli(lambda_n) at every step, drawn at once. A
    row's exit depends on its own outputs, the key and its index, and neither on the other rows nor
    on the executor.

    Args:
      key: of `jax.random.key`; the same key draws the same again.
      read: `read(output) -> logit [b]` with lambda = sigmoid(logit); None for the key "halt_logit".

    Returns:
      `Criterion` whose score is ln(1 - F_n), which it remembers, and whose decision remembers ln(1
      - u), float32 `[b]` both.

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
      `halting_mixture` of the objectives the answer in expectation.
    """
    if (
        not isinstance(key, jax.Array)
        or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        or key.shape
    ):
        raise TypeError(f"`key` must be one key of jax.random.key, got {type(key).__name__}")
    seed = jax.random.bits(key, (2,), jnp.uint32)
    return Criterion(LogSurvival(read), _above_level, zeros, Partial(_draw, seed))


def _draw(seed: Array, batch: Size) -> Array:
    """ln(1 - u) of every row."""
    key = jax.random.wrap_key_data(seed, impl="threefry2x32")
    u = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row)))(jnp.arange(batch))
    return jnp.log1p(-u)


def _above_level(i: Array, log_survival: Array, level: Array) -> tuple[Array, Array]:
    return log_survival < level, level
