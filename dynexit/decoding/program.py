"""The compiled loop of decoding: slots take requests, read their prompts, and run rounds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynexit.core.shapes import Array, Int
from dynexit.decoding.exits.parked import parked_round
from dynexit.decoding.exits.round import exit_round
from dynexit.decoding.plan import FIRST_RATE, Carry, Given, Plan
from dynexit.decoding.rounds.choice import next_round, unread
from dynexit.decoding.rounds.round import before_head, one_round

ALL = np.iinfo(np.int32).max // 2  # more rounds than any text takes


def run_all_rounds(plan: Plan, given: Given, carry: Carry, rounds: Int[Array, ""]) -> Carry:
    """Runs until all requests are finished, or for a number of rounds.

    Args:
      plan: what the program is compiled for.
      given: the arrays that no round changes.
      carry: donated by `run_rounds`, the compiled form.
      rounds: int32, rounds at most.

    Returns:
      The carry after them.
    """
    until = carry.rounds + rounds
    exiting = exit_round if carry.parked is None else parked_round

    def busy(carry: Carry) -> Array:
        size = carry.requests.length.shape[0]
        more = (carry.of < size).any() | (carry.waiting < carry.queued)
        return more & (carry.rounds < until)

    def body(carry: Carry) -> Carry:
        # loops in a row and no `cond`, through which XLA would copy the cache
        reads = lambda c: (unread(plan, c) > 0).any()
        carry = lax.while_loop(
            reads, functools.partial(read_chunk, plan, given), admit(plan, carry)
        )
        carry = carry._replace(choice=next_round(plan, given, carry))
        for k, d in enumerate(plan.lengths):
            chosen = lambda c, k=k: (c.choice == k) & (c.rounds < until)
            run = functools.partial(one_round, d=d) if plan.exits is None else exiting
            carry = lax.while_loop(chosen, functools.partial(run, plan, given), carry)
        return carry

    return lax.while_loop(busy, body, carry)


run_rounds = jax.jit(run_all_rounds, static_argnums=0, donate_argnums=2)


def admit(plan: Plan, carry: Carry) -> Carry:
    """Empty slots take the next requests of the queue."""
    size = carry.requests.length.shape[0]
    empty = carry.of >= size
    turn = carry.waiting + jnp.cumsum(empty.astype(jnp.int32)) - 1
    takes = empty & (turn < carry.queued)
    parked = None if carry.parked is None else carry.parked.without(takes, plan.room)
    return carry._replace(
        waiting=carry.waiting + takes.sum(dtype=jnp.int32),
        of=jnp.where(takes, turn, carry.of),
        filled=jnp.where(takes, 0, carry.filled),
        rate=jnp.where(takes, FIRST_RATE, carry.rate),
        parked=parked,
    )


def read_chunk(plan: Plan, given: Given, carry: Carry) -> Carry:
    """Reads the next tokens of the slot with the most unread ones; no logits are computed."""
    left, decoder = unread(plan, carry), plan.decoder
    slot = jnp.argmax(left).astype(jnp.int32)
    filled = carry.filled[slot]
    place = filled + jnp.arange(plan.chunk, dtype=jnp.int32)
    tokens = carry.requests.tokens.at[carry.of[slot], place].get(mode="clip")[None]
    used = jnp.arange(plan.chunk) < left[slot]
    positions, rows = jnp.where(used, place, plan.room)[None], slot[None]
    state = decoder.embed(given.weights, tokens, positions)
    cache, depth = carry.cache, decoder.depth
    first, state, cache = before_head(plan, given, state, positions, cache, rows)
    state, cache = decoder.blocks(given.weights, first, depth - 1, state, positions, cache, rows)
    cache = decoder.fill(given.weights, depth - 1, depth, state, positions, cache, rows)
    filled = filled + jnp.minimum(left[slot], plan.chunk)
    return carry._replace(cache=cache, filled=carry.filled.at[slot].set(filled))
