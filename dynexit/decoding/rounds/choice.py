"""How many drafts the next round has."""

import jax.numpy as jnp

from dynexit.core.shapes import Array, Int
from dynexit.decoding.plan import Carry, Given, Plan

MARGIN = 0.1  # of the costs, which are measured; drafts must promise more


def next_round(plan: Plan, given: Given, carry: Carry) -> Int[Array, ""]:
    """The index of the number of drafts that is expected to finish soonest.

    A row whose drafts are accepted with probability a writes (1 - a^{n+1}) / (1 - a) tokens in a
    round with n drafts. While requests wait, the most tokens per cost count; after that the cost
    until the last row is finished. Drafts must promise a gain of more than `MARGIN`. K where there
    is something to do before.
    """
    size = carry.requests.length.shape[0]
    live, waits = carry.of < size, carry.waiting < carry.queued
    idle = ~live.any() | (~live.all() & waits)
    idle = idle | (unread(plan, carry) > 0).any()
    if len(plan.lengths) == 1:
        return idle.astype(jnp.int32)  # a literal would make it weakly typed: another program
    look = lambda a: a.at[carry.of].get(mode="clip")
    known = look(carry.requests.length)
    a = jnp.where(known - carry.filled > 1, 0.99, carry.rate)  # it reads its prompt
    a = jnp.clip(a, 0.01, 0.99)[:, None]
    n = jnp.array(plan.lengths, jnp.float32)[None]
    written = jnp.where(live[:, None], (1 - a ** (n + 1)) / (1 - a), 0)
    left = jnp.where(live, look(carry.requests.limit) - known, 0).astype(jnp.float32)[:, None]
    last = (left / jnp.maximum(written, 1)).max(0)  # rounds until no row is left
    needed = jnp.where(waits, 1 / jnp.maximum(written.sum(0), 1), last) * given.costs
    needed = needed.at[1:].multiply(1 + MARGIN)
    return jnp.where(idle, len(plan.lengths), jnp.argmin(needed)).astype(jnp.int32)


def unread(plan: Plan, carry: Carry) -> Int[Array, "S"]:
    """Known tokens of each slot that are read in chunks: all but those that one round reads."""
    size = carry.requests.length.shape[0]
    known = carry.requests.length.at[carry.of].get(mode="clip")
    left = jnp.where(carry.of < size, known - carry.filled, 0)
    return jnp.where(left > plan.width, left - 1, 0)
