"""A round in which rows wait at the first exit, until their deeper blocks run for all at once."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from dynexit.core.decoder import Cache
from dynexit.core.shapes import Array, Bool, Int, PyTree
from dynexit.core.types import Criterion, Memory
from dynexit.criteria.memory import first_memory
from dynexit.decoding.exits.plan import Parked, Unfilled
from dynexit.decoding.exits.segments import (
    exit_logits,
    exit_output,
    filled,
    propagated,
    reading_of,
    round_state,
    run_segments,
)
from dynexit.decoding.plan import Carry, Given, Plan
from dynexit.decoding.rounds import Drafted, accepted, next_round, rows_of
from dynexit.engine.rows import read_exit, where_rows


def parked_round(plan: Plan, given: Given, carry: Carry) -> Carry:
    """Runs the first blocks for rows that do not wait, and the others for those that do if due.

    It is due after `park` sweeps of the first blocks since a row began to wait, and where every row
    waits.
    """
    exits, decoder, parked = plan.exits, plan.decoder, carry.parked
    assert exits is not None
    assert parked is not None
    rows, bounds = rows_of(carry), (0, *exits.after, decoder.depth)
    runs, waits = rows.live & ~parked.waiting, rows.live & parked.waiting
    rows = rows._replace(filled=rows.known - 1)
    at = rows.filled[:, None]
    tokens = jnp.take_along_axis(rows.text, jnp.minimum(at, plan.room - 1), axis=1)
    positions = jnp.where(runs[:, None], at, plan.room)
    h = decoder.embed(given.weights, tokens, positions)
    state = round_state(plan, carry, rows, h, positions)
    reading = reading_of(plan, given, state)
    more = {"present": state["present"]} if "present" in state else {}
    h, cache = decoder.blocks(given.weights, 0, bounds[1], h, positions, carry.cache, None, **more)
    output = exit_output(plan, given.weights, {**state, "h": h}, reading.deferred)
    memory = first_memory(reading.criterion, plan.slots, reading.output, len(bounds) - 1)
    zero, no = jnp.int32(0), jnp.bool_(False)
    exits_here, _, _ = read_exit(reading.criterion, zero, no, output, memory)
    left, stays = runs & exits_here, runs & ~exits_here
    waits, kept = waits | stays, where_rows(stays, h, parked.state)
    sweeps = jnp.where(waits.any(), parked.sweeps + 1, 0)
    due = waits.any() & ((sweeps >= exits.park) | ~(rows.live & ~waits).any())
    unfilled = parked.unfilled
    if unfilled is not None:
        unfilled = _with(unfilled, h, jnp.where(left[:, None], positions, plan.room))
        now = due | (unfilled.sweeps >= exits.park)
        blocks = bounds[1], decoder.depth
        cache = filled(plan, given, unfilled.state, unfilled.positions, cache, blocks, now)
        unfilled = unfilled._replace(
            positions=jnp.where(now, plan.room, unfilled.positions),
            sweeps=jnp.where(now, 0, unfilled.sweeps),
        )

    def deeper(run: tuple[Array, Cache, PyTree, Array]) -> tuple[Array, Cache, PyTree, Array]:
        _, cache, output, depth = run
        at_exit = exit_output(plan, given.weights, entering, reading.deferred)
        _, after, _ = read_exit(reading.criterion, zero, no, at_exit, memory)
        rest = reading._replace(criterion=_resumed(reading.criterion, after))
        halted = run_segments(plan, given, cache, entering, rest, bounds[1:])
        cache = halted.side
        if exits.cache == "propagate":
            cache = propagated(plan, given, halted, waits, entering["positions"], bounds[1:])
        depth = jnp.where(waits, jnp.array(bounds[2:])[halted.exit], depth)
        return no, cache, where_rows(waits, halted.output, output), depth

    waiting = jnp.where(waits[:, None], at, plan.room)
    entering = round_state(plan, carry, rows._replace(live=waits), kept, waiting)
    depth = jnp.full(plan.slots, bounds[1], jnp.int32)
    # a loop of at most one trip: XLA copies the cache through a `cond`
    run = lax.while_loop(lambda run: run[0], deeper, (due, cache, output, depth))
    _, cache, output, depth = run
    logits = exit_logits(plan, given, output, reading.deferred)
    done = rows._replace(live=left | (waits & due))
    drafted = Drafted(tokens, jnp.zeros(plan.slots, jnp.int32), None, None)
    carry = carry._replace(
        cache=cache,
        deepest=carry.deepest + jnp.where(done.live, depth, bounds[1]).max(),
        parked=Parked(waits & ~due, kept, jnp.where(due, 0, sweeps), unfilled),
    )
    carry = accepted(plan, carry, done, drafted, logits, 0, depth)
    return carry._replace(choice=next_round(plan, given, carry))


def _with(unfilled: Unfilled, state: PyTree, positions: Int[Array, "S 1"]) -> Unfilled:
    """The next entry of each row."""
    k = unfilled.sweeps
    put = lambda a, new: lax.dynamic_update_slice_in_dim(a, new, k, axis=1)
    states = jax.tree.map(put, unfilled.state, state)
    return Unfilled(states, put(unfilled.positions, positions), k + 1)


def _resumed(criterion: Criterion, memory: Memory) -> Criterion:
    """The criterion from its second exit on, with what it remembers of the first one."""

    def score(i: Array, output: PyTree, memory: PyTree) -> tuple[PyTree, PyTree]:
        return criterion.score(i + 1, output, memory)

    def decide(i: Array, score: PyTree, memory: PyTree) -> tuple[Bool[Array, "b"], PyTree]:
        return criterion.decide(i + 1, score, memory)

    return dataclasses.replace(
        criterion,
        score=score,
        decide=decide,
        init_score=lambda batch, output: memory.score,
        init_decide=lambda batch: memory.decide,
        exits=None,
    )
