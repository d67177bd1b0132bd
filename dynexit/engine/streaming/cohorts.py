"""Streaming through blocks with weights of their own: rows that wait for the same block are run
together once they fill a tile.

Rows waiting for block i are cohort i, and the queue is cohort 0. A tile is taken from the deepest
cohort that fills one; where none does, which is so only at the end of the queue, from the
shallowest that has any rows, since deeper ones may still gain some:

    queue      k l m n o ...    tiles of 4: cohort 2 alone fills one, so c f h i run through block
    2; cohort 1   d g              those that go on join cohort 3, those that leave are appended to
    the departed cohort 2   a c f h i cohort 3   b e j

A cohort that gains rows held fewer than T, or it would have run itself; it gains T at most. So
cohorts of 2T - 1 places cannot overflow, however long the queue, and every block runs one tile at
most that is not full, however the depths are spread.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dynexit.core.checks import Stage
from dynexit.core.types import Array, Criterion, Halted, PyTree
from dynexit.engine import loops
from dynexit.engine.executors.compacted import Gone, Live, part, write_rows
from dynexit.engine.executors.tiling import Tiling
from dynexit.engine.rows import exit_depth, read_exit


class Flow(NamedTuple):
    """Where a stream stands.

    Attributes:
      waiting: cohorts 1..N-1 one after the other, 2T - 1 places each, filled from the front; then
        room for a tile's end.
      gone: rows that have left, in the order in which they did.
      counts: int32 `[N + 1]`, rows in every cohort; the first is what is left of the queue, the
        last stays 0.
      left: int32 `[]`, rows in `gone`.
      executed: int32 `[]`, rows x steps so far.
    """

    waiting: Live
    gone: Gone
    counts: Array
    left: Array
    executed: Array


def run_cohorts(
    stage: Stage,
    queue: PyTree,
    rows: Array,
    criterion: Criterion,
    memory: PyTree,
    output: PyTree,
    slots: int,
    tiling: Tiling,
    keep_state: bool,
) -> Halted:
    """Runs a queue through one stage, whose steps may have weights of their own and keep the
    state's shape.

    Args:
      stage: the network.
      queue: leaves `[M, ...]`.
      rows: int32 `[]`, traced: how many rows of the queue are run, from the first; the others'
        results are arbitrary.
      criterion: when a row leaves; asked with a scalar `i`.
      memory: its memory before the first exit, leaves `[M, ...]`.
      output: shapes of an exit's output.
      slots, tiling: the largest size T and all sizes; the others are for cohorts that do not fill a
        tile.
      keep_state: whether the states with which rows left are wanted.
    """
    count, tile = jax.tree.leaves(queue)[0].shape[0], slots
    plans = jnp.asarray(tiling.counts(tile))
    filled = jnp.zeros(count + tile - 1, jnp.int32)
    empty = lambda length, tree: jax.tree.map(
        lambda a: jnp.zeros((length, *a.shape[1:]), a.dtype), tree
    )
    places = (stage.steps - 1) * (2 * tile - 1) + tile
    source = Live(queue, memory, jnp.arange(count, dtype=jnp.int32), jnp.zeros(count, jnp.int32))
    roomy = lambda tree: empty(count + tile - 1, tree)
    flow = Flow(
        empty(places, source),
        Gone(
            roomy(queue) if keep_state else None,
            roomy(output),
            roomy(memory),
            filled,
            filled,
            filled,
        ),
        jnp.zeros(stage.steps + 1, jnp.int32).at[0].set(rows),
        jnp.int32(0),
        jnp.int32(0),
    )

    def turn(flow: Flow) -> Flow:
        full = flow.counts >= tile
        deepest = stage.steps - jnp.argmax(full[::-1])
        i = jnp.where(full.any(), deepest, jnp.argmax(flow.counts > 0)).astype(jnp.int32)
        taken = jnp.minimum(flow.counts[i], tile)
        tiles = _take(source, flow, i, rows, taken, tile)
        weights = stage.step.select(i)
        flow = flow._replace(counts=flow.counts.at[i].add(-taken))
        carry = jnp.int32(0), flow
        for k, size in enumerate(tiling.sizes):
            run = functools.partial(_run, stage, i, weights, criterion, tiles, taken, size)
            carry = loops.repeat(plans[taken, k], run, carry)
        return carry[1]

    flow = loops.while_loop(lambda flow: (flow.counts > 0).any(), turn, flow)
    return in_queue_order(flow.gone, count, rows, stage, flow.executed)


def in_queue_order(gone: Gone, count: int, rows: Array, stage: Stage, executed: Array) -> Halted:
    """The first `rows` of a queue of `count`, all of which have left, put back into its order;
    other results are arbitrary.
    """
    order = jnp.arange(count, dtype=jnp.int32)
    place = (
        jnp.zeros(count, jnp.int32)
        .at[jnp.where(order < rows, gone.row[:count], count)]
        .set(order, mode="drop")
    )
    gone = jax.tree.map(lambda a: a[place], gone)
    depth = exit_depth((stage,), gone.exit)
    return Halted(gone.output, gone.exit, depth, gone.state, gone.memory, gone.nan_exits, executed)


def _take(source: Live, flow: Flow, i: Array, rows: Array, taken: Array, tile: int) -> Live:
    """The last `taken` rows of cohort i, or the next of the queue; leaves `[T, ...]`, left over
    beyond.
    """
    steps = jnp.arange(tile, dtype=jnp.int32)
    queued = jnp.minimum(rows - flow.counts[0] + steps, source.row.shape[0] - 1)
    waits = _begin(i, tile) + jnp.where(i > 0, flow.counts[i] - taken, 0) + steps
    from_queue = jax.tree.map(
        lambda a: a.at[queued].get(mode="promise_in_bounds", indices_are_sorted=True), source
    )
    from_cohort = jax.tree.map(
        lambda a: a.at[waits].get(
            mode="promise_in_bounds", unique_indices=True, indices_are_sorted=True
        ),
        flow.waiting,
    )
    return jax.tree.map(lambda a, b: jnp.where(i > 0, b, a), from_queue, from_cohort)


def _run(
    stage, i, weights, criterion, tiles: Live, taken: Array, size: int, carry: tuple[Array, Flow]
) -> tuple[Array, Flow]:
    """One step on the next `size` of the rows that were taken; they join the next cohort or leave."""
    begin, flow = carry
    rows = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, begin, size, 0), tiles)
    state, output = stage.step.apply(weights, i, rows.state)
    leaves, memory, nan = read_exit(criterion, i, i == stage.steps - 1, output, rows.memory)
    occupied = begin + jnp.arange(size, dtype=jnp.int32) < taken
    parting = part(leaves, occupied)
    after = Live(state, memory, rows.row, rows.nan_exits + nan.astype(jnp.int32))
    departed = Gone(
        None if flow.gone.state is None else state,
        output,
        memory,
        after.row,
        after.nan_exits,
        jnp.full(size, i),
    )
    return begin + size, Flow(
        write_rows(
            flow.waiting,
            after,
            parting.stay,
            _begin(i + 1, tiles.row.shape[0]) + flow.counts[i + 1],
        ),
        write_rows(flow.gone, departed, parting.leave, flow.left),
        flow.counts.at[i + 1].add(parting.staying),
        flow.left + parting.leaving,
        flow.executed + size,
    )


def _begin(i: Array, tile: int) -> Array:
    """The first place of cohort i; cohort N's, which never holds a row, is the room for a tile's
    end.
    """
    return jnp.maximum(i - 1, 0) * (2 * tile - 1)
