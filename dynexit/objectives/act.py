"""Adaptive computation time: weights of the steps, their number and the remainder, from accumulated
halting probabilities.
"""

from typing import NamedTuple

import jax.numpy as jnp

from dynexit.core.types import Array
from dynexit.objectives.multi_exit import widened


class ActAccount(NamedTuple):
    """What ACT makes of the halting probabilities of every place (or of every row, where the shapes
    are `[N, B]`).

    Attributes:
      weights: `[N, B, ...]`, w; sums to 1 over the steps, 0 after the halting step.
      updates: `[B, ...]`, n in 1..N, the halting step; piecewise constant, so no gradient goes
        through it.
      remainder: `[B, ...]`, R = w_n, what was left for the halting step.
      ponder: `[B, ...]`, n + R, Graves' rho; at least 2 where N is not reached (a step that is sure
        at once has n = 1 and R = 1).
      at_limit: bool `[B, ...]`, whether the last step was taken because there is no other.
    """

    weights: Array
    updates: Array
    remainder: Array
    ponder: Array
    at_limit: Array


def halting_sums(halting: Array, epsilon: float = 0.01) -> Array:
    """Halting probability accumulated up to each step, h_n = sum_{i<=n} p_i, and 1 once that is
    above 1 - epsilon.

    Args:
      halting: p, `[N, B, ...]` in 0..1.
      epsilon: above 0 and below 1.

    Returns:
      `[N, B, ...]`, float32 or better; 1 exactly from the halting step on. Where no step halts the
      last entry is below 1.

    Raises:
      ValueError: `halting` is not `[N, B, ...]`, `epsilon` not between 0 and 1.

    Example:
      >>> [round(h, 4) for h in halting_sums(jnp.array([[0.3], [0.4], [0.5], [0.5]]))[:, 0].tolist()]
      [0.3, 0.7, 1.0, 1.0]

    Source: Graves 2016, equation 6, there with >=; the released Universal Transformer compares
      strictly, as here.
    """
    if not 0 < epsilon < 1:
        raise ValueError(f"`epsilon` must lie between 0 and 1, both excluded, got {epsilon}")
    _check(halting, "halting")
    sums = jnp.cumsum(widened(halting), axis=0)
    return jnp.where(sums > 1 - epsilon, 1.0, sums)


def act_account(sums: Array) -> ActAccount:
    """Weights, number of steps and remainder, w_n = h_n - h_{n-1} with h_N = 1: the last step gets
    what is left, halted or not.

    Args:
      sums: h, `[N, B, ...]`, of `halting_sums` or an averaged model's output "accumulated"; 1
        exactly once halted.

    Returns:
      `ActAccount`. Gradients reach h, and so the halting probabilities, through weights, remainder
      and ponder: d ponder / dp_k is -1 before the halting step and 0 from there on.

    Raises:
      ValueError: `sums` is not `[N, B, ...]`.

    Example:
      >>> account = act_account(halting_sums(jnp.array([[0.3], [0.4], [0.5], [0.5]])))
      >>> [round(w, 4) for w in account.weights[:, 0].tolist()], round(float(account.ponder[0]), 4)
      ([0.3, 0.4, 0.3, 0.0], 3.3)

    Source: Graves 2016, equations 7 to 11. The released Universal Transformer (two public versions)
      gives no remainder at the step
    limit, so that its weights sum to less than 1 there; here they sum to 1.
    """
    _check(sums, "sums")
    h = widened(sums)
    closed = jnp.concatenate([h[:-1], jnp.ones_like(h[:1])])
    before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])
    weights = closed - before
    halted = h >= 1.0
    updates = 1 + (~halted[:-1]).sum(axis=0, dtype=jnp.int32)
    remainder = jnp.take_along_axis(weights, updates[None] - 1, axis=0)[0]
    return ActAccount(weights, updates, remainder, updates.astype(h.dtype) + remainder, ~halted[-1])


def _check(values: Array, name: str) -> None:
    if values.ndim < 2 or 0 in values.shape:
        raise ValueError(
            f"`{name}` must have shape [N, B] or [N, B, ...], none of them 0, got {values.shape}"
        )
