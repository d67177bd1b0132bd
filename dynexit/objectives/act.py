"""Adaptive computation time (ACT): step weights, number of steps and remainder."""

from typing import NamedTuple

import jax.numpy as jnp

from dynexit.core.shapes import Array, Bool, Float, Int
from dynexit.objectives.multi_exit import widened


class ActAccount(NamedTuple):
    """The quantities of ACT, per row for inputs `[N, B]` and else per position of a row.

    Attributes:
      weights: `[N, B, ...]`, w; sums to 1 over the steps and is 0 after the halting step.
      updates: int32 `[B, ...]`, n in 1..N, the halting step; piecewise constant, so it has no
        gradient.
      remainder: `[B, ...]`, R = w_n, the probability that remains for the halting step.
      ponder: `[B, ...]`, n + R, Graves' rho; at least 2 if the row halts before step N (halting at
        n = 1 has R = 1).
      at_limit: bool `[B, ...]`, whether halting was forced at step N.
    """

    weights: Float[Array, "N B ..."]
    updates: Int[Array, "B ..."]
    remainder: Float[Array, "B ..."]
    ponder: Float[Array, "B ..."]
    at_limit: Bool[Array, "B ..."]


def halting_sums(
    halting: Float[Array, "N B *places"], epsilon: float = 0.01
) -> Float[Array, "N B *places"]:
    """Cumulative halting probability of ACT, set to 1 once it exceeds 1 - epsilon.

    h_n = sum_{i<=n} p_i if that is at most 1 - epsilon, else 1.

    Args:
      halting: p, `[N, B, ...]` in 0..1.
      epsilon: above 0 and below 1.

    Returns:
      `[N, B, ...]`, float32 or float64; exactly 1 from the halting step on. If no step halts, the
      last entry is below 1.

    Raises:
      ValueError: `halting` does not have shape `[N, B, ...]`, or `epsilon` is not between 0 and 1.

    Example:
      >>> sums = halting_sums(jnp.array([[0.3], [0.4], [0.5], [0.5]]))
      >>> [round(h, 4) for h in sums[:, 0].tolist()]
      [0.3, 0.7, 1.0, 1.0]

    Source: Graves 2016, equation 6, which compares with >=; the released Universal Transformer
      compares with >, as this function does.
    """
    if not 0 < epsilon < 1:
        raise ValueError(f"`epsilon` must lie between 0 and 1, both excluded, got {epsilon}")
    _check(halting, "halting")
    sums = jnp.cumsum(widened(halting), axis=0)
    return jnp.where(sums > 1 - epsilon, 1.0, sums)


def act_account(sums: Float[Array, "N B ..."]) -> ActAccount:
    """Weights, number of steps and remainder of ACT from cumulative halting probabilities.

    w_n = h_n - h_{n-1} with h_0 = 0 and h_N = 1. The last step takes the remaining probability
    whether or not it halts.

    Args:
      sums: h, `[N, B, ...]`, from `halting_sums` or the output "accumulated" of an averaged model;
        exactly 1 once halted.

    Returns:
      An `ActAccount`. Gradients reach h, and so the halting probabilities, through weights,
      remainder and ponder: d ponder / dp_k is -1 before the halting step and 0 from there on.

    Raises:
      ValueError: `sums` does not have shape `[N, B, ...]`.

    Example:
      >>> account = act_account(halting_sums(jnp.array([[0.3], [0.4], [0.5], [0.5]])))
      >>> [round(w, 4) for w in account.weights[:, 0].tolist()], round(float(account.ponder[0]), 4)
      ([0.3, 0.4, 0.3, 0.0], 3.3)

    Source: Graves 2016, equations 7 to 11. Deviation from two public versions of the Universal
      Transformer: they add no remainder at the step limit, so their weights sum to less than 1
      there; these sum to 1.
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
            f"`{name}` must have shape [N, B] or [N, B, ...] without an axis of size 0, "
            f"got {values.shape}"
        )
