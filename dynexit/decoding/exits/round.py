"""A round in which all rows run their next token to its exit, and wait for the deepest one."""

import jax.numpy as jnp

from dynexit.decoding.exits.segments import (
    exit_logits,
    propagated,
    reading_of,
    round_state,
    run_segments,
)
from dynexit.decoding.exits.work import counted, exit_of
from dynexit.decoding.plan import Carry, Given, Plan
from dynexit.decoding.rounds.acceptance import accepted
from dynexit.decoding.rounds.choice import next_round
from dynexit.decoding.rounds.rows import Drafted, rows_of


def exit_round(plan: Plan, given: Given, carry: Carry) -> Carry:
    """Runs the next token of every slot to its exit."""
    exits, decoder = plan.exits, plan.decoder
    assert exits is not None
    rows, bounds = rows_of(carry), (0, *exits.after, decoder.depth)
    at = rows.filled[:, None] + jnp.arange(exits.window)[None]
    pending = (at < rows.known[:, None]) & rows.live[:, None]
    tokens = jnp.take_along_axis(rows.text, jnp.minimum(at, plan.room - 1), axis=1)
    positions = jnp.where(pending, at, plan.room)
    h = decoder.embed(given.weights, tokens, positions)
    state = round_state(plan, carry, rows, h, positions)
    reading = reading_of(plan, given, state)
    halted = run_segments(plan, given, carry.cache, state, reading, bounds)
    depth, cache = jnp.array(bounds[1:])[halted.exit], halted.side
    if exits.cache == "propagate":
        cache = propagated(plan, given, halted, rows.live, positions, bounds)
    logits = exit_logits(plan, given, halted.output, reading.deferred)
    readouts = jnp.ones_like(depth) if reading.deferred else exit_of(plan, depth) + 1
    again = pending.sum(1, dtype=jnp.int32) - 1
    prompt = carry.requests.prompt.at[carry.of].get(mode="clip")
    again = jnp.where(rows.known == prompt, 0, again)  # a short prompt is read here
    carry = counted(plan, carry, rows.live, depth, readouts, again)
    drafted = Drafted(tokens[:, :1], jnp.zeros(plan.slots, jnp.int32), None, None)
    ahead = rows._replace(filled=rows.known - 1)
    carry = accepted(plan, carry._replace(cache=cache), ahead, drafted, logits, 0, depth)
    carry = carry._replace(deepest=carry.deepest + jnp.where(rows.live, depth, 0).max())
    if exits.cache == "recompute":  # what has not run through all blocks runs again
        again = rows.live & (depth < decoder.depth)
        carry = carry._replace(filled=jnp.where(again, rows.filled, carry.filled))
    return carry._replace(choice=next_round(plan, given, carry))
