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
    Reading,
    exit_logits,
    exit_output,
    filled,
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
from dynexit.engine.rows import read_exit, where_rows


def parked_round(plan: Plan, given: Given, carry: Carry) -> Carry:
    """Runs the first blocks for rows that do not wait, and the others for those that do if due.

    It is due after `park` sweeps of the first blocks since a row began to wait, and where every row
    waits.
    """
    exits, decoder, parked = plan.exits, plan.decoder, carry.parked
    assert exits is not None
    assert parked is not None
    rows = rows_of(carry)
    rows = rows._replace(filled=rows.known - 1)
    runs, waits = rows.live & ~parked.waiting, rows.live & parked.waiting
    at = rows.filled[:, None]
    tokens = jnp.take_along_axis(rows.text, jnp.minimum(at, plan.room - 1), axis=1)
    positions = jnp.where(runs[:, None], at, plan.room)
    h = decoder.embed(given.weights, tokens, positions)
    state = round_state(plan, carry, rows._replace(live=runs), h, positions)
    reading, present = reading_of(plan, given, state), state.get("present")
    h, cache = decoder.blocks(
        given.weights, 0, exits.after[0], h, positions, carry.cache, present=present
    )
    read = given.weights, given.among
    output = exit_output(plan, *read, {**state, "h": h}, reading.deferred)
    exits_here, _ = _at_first_exit(plan, reading, output)
    left, stays = runs & exits_here, runs & ~exits_here
    waits, kept = waits | stays, where_rows(stays, h, parked.state)
    sweeps = jnp.where(waits.any(), parked.sweeps + 1, 0)
    due = waits.any() & ((sweeps >= exits.park) | ~(rows.live & ~waits).any())
    unfilled = parked.unfilled
    if unfilled is not None:
        unfilled = _with(unfilled, h, jnp.where(left[:, None], positions, plan.room))
        cache, unfilled = _filled_if(plan, given, cache, unfilled, due)
    waiting = jnp.where(waits[:, None], at, plan.room)
    entering = round_state(plan, carry, rows._replace(live=waits), kept, waiting)
    cache, output, depth = _deeper(plan, given, reading, entering, due, cache, output)
    carry = carry._replace(
        cache=cache,
        deepest=carry.deepest + depth.max(),
        parked=Parked(waits & ~due, kept, jnp.where(due, 0, sweeps), unfilled),
    )
    done = rows._replace(live=left | (waits & due))
    carry = counted(plan, carry, done.live, depth, _readouts(plan, reading, depth))
    logits = exit_logits(plan, given, output, reading.deferred)
    drafted = Drafted(tokens, jnp.zeros(plan.slots, jnp.int32), None, None)
    carry = accepted(plan, carry, done, drafted, logits, 0, depth)
    return carry._replace(choice=next_round(plan, given, carry))


def _deeper(
    plan: Plan,
    given: Given,
    reading: Reading,
    state: PyTree,
    due: Bool[Array, ""],
    cache: Cache,
    output: PyTree,
) -> tuple[Cache, PyTree, Int[Array, "S"]]:
    """If due, runs the rows that are live in `state` from the first exit to theirs.

    It is a loop of at most one trip: XLA copies the cache through a `cond`.

    Returns:
      The cache, the outputs with which rows exited, and their depths.
    """
    exits, waits = plan.exits, state["output"]["live"]
    assert exits is not None
    bounds = (*exits.after, plan.decoder.depth)

    def run(carry: tuple[Array, Cache, PyTree, Array]) -> tuple[Array, Cache, PyTree, Array]:
        _, cache, output, depth = carry
        first = exit_output(plan, given.weights, given.among, state, reading.deferred)
        _, memory = _at_first_exit(plan, reading, first)
        rest = reading._replace(criterion=_resumed(reading.criterion, memory))
        halted = run_segments(plan, given, cache, state, rest, bounds)
        cache = halted.side
        if exits.cache == "propagate":
            cache = propagated(plan, given, halted, waits, state["positions"], bounds)
        depth = jnp.where(waits, jnp.array(bounds[1:])[halted.exit], depth)
        return jnp.bool_(False), cache, where_rows(waits, halted.output, output), depth

    depth = jnp.full(plan.slots, bounds[0], jnp.int32)
    return lax.while_loop(lambda carry: carry[0], run, (due, cache, output, depth))[1:]


def _at_first_exit(plan: Plan, reading: Reading, output: PyTree) -> tuple[Bool[Array, "S"], Memory]:
    """Whether each row exits at the first exit, and what the criterion remembers."""
    exit, memory, _ = read_exit(
        reading.criterion, jnp.int32(0), jnp.bool_(False), output, _before(plan, reading)
    )
    return exit, memory


def _before(plan: Plan, reading: Reading) -> Memory:
    assert plan.exits is not None
    exits = len(plan.exits.after) + 1
    return first_memory(reading.criterion, plan.slots, reading.output, exits)


def _readouts(plan: Plan, reading: Reading, depth: Int[Array, "S"]) -> Int[Array, "S"]:
    """Logits that were computed for the token of each row.

    What a criterion remembers of the first exit is computed again for rows that waited.
    """
    exit = exit_of(plan, depth)
    if reading.deferred:
        return jnp.ones_like(exit)
    again = bool(jax.tree.leaves(_before(plan, reading).score))
    return jnp.where((exit > 0) & again, exit + 2, exit + 1)


def _filled_if(
    plan: Plan, given: Given, cache: Cache, unfilled: Unfilled, due: Bool[Array, ""]
) -> tuple[Cache, Unfilled]:
    """Computes the keys and values of all entries, where it is due or they are as many as fit."""
    exits = plan.exits
    assert exits is not None
    now = due | (unfilled.sweeps >= exits.park)
    blocks, at = (exits.after[0], plan.decoder.depth), unfilled.positions
    cache = filled(plan, given, unfilled.state, at, cache, blocks, now)
    positions = jnp.where(now, plan.room, at)
    return cache, Unfilled(unfilled.state, positions, jnp.where(now, 0, unfilled.sweeps))


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
