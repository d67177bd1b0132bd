"""Streaming through untied blocks: rows that wait for the same block are gathered into tiles.

Rows that wait for block i form cohort i, and the queue is cohort 0. A tile is taken from the
deepest cohort that fills one. At the end of the queue no cohort may fill a tile. Then the tile is
taken from the shallowest cohort with rows, since deeper cohorts may still gain rows:

    queue      k l m n o ...    tiles of 4: only cohort 2 fills one, so c f h i run through
    cohort 1   d g              block 2; survivors join cohort 3, and rows that exit are
    cohort 2   a c f h i        appended to the exited rows
    cohort 3   b e j

A cohort that gains rows held fewer than T, or it would have run itself; it gains at most T rows. So
cohorts of 2T - 1 places cannot overflow for any length of the queue, and every block runs at most
one tile that is not full, for any distribution of depths. Smaller tile sizes are for such tiles;
only the block and its head are compiled for each size.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynexit.core.shapes import Array, Int, PyTree, Rows
from dynexit.core.stages import Stage
from dynexit.core.types import Criterion, Halted, Memory
from dynexit.engine import loops
from dynexit.engine.counts import Counter, counted, no_rows, total
from dynexit.engine.executors.compacted import in_tiles
from dynexit.engine.executors.moves import (
    empty_rows,
    extended,
    read_rows,
    survivors_first,
    take_tile,
    write_tile,
)
from dynexit.engine.executors.tiling import Tiling
from dynexit.engine.rows import read_exit
from dynexit.engine.streaming.queues import Exited, Waiting, in_queue_order, none_exited


class Flow(NamedTuple):
    """The carry of the loop over tiles.

    Attributes:
      waiting: cohorts 1..N-1 one after the other, 2T - 1 places each, filled from the front, then
        space for the end of a tile.
      exited: exited rows.
      output: leaves `[P, ...]`, of the last tile that ran; it is written before it is read.
      counts: int32 `[N + 1]`, the number of rows in every cohort; the first entry is that of the
        queue, the last is always 0.
      done: int32 `[]`, the number of rows in `exited`.
      executed: rows x steps so far, a counter.
    """

    waiting: Waiting
    exited: Exited
    output: PyTree
    counts: Int[Array, "cohorts"]
    done: Int[Array, ""]
    executed: Counter


def run_cohorts(
    stage: Stage,
    queue: Rows,
    rows: Int[Array, ""],
    criterion: Criterion,
    memory: Memory,
    output: PyTree,
    slots: int,
    tiling: Tiling,
    keep_state: bool,
) -> Halted:
    """Runs a queue through one stage whose steps keep the shape of the state.

    Args:
      stage: the network; its steps may have different weights.
      queue: leaves `[M, ...]`.
      rows: int32 `[]`, traced: the number of rows that run, from the first row of the queue on; the
        results of the other rows are arbitrary.
      criterion: when a row exits; it receives a scalar `i`.
      memory: its memory before the first exit, leaves `[M, ...]`.
      output: shapes of the output of an exit.
      slots, tiling: the largest size T and all sizes; the smaller sizes are for cohorts that do not
        fill a tile.
      keep_state: whether to keep the states with which rows exit.
    """
    count, tile = jax.tree.leaves(queue)[0].shape[0], slots
    beyond, places = tiling.padding(tile), (stage.steps - 1) * (2 * tile - 1) + tile
    source = Waiting(queue, memory, jnp.arange(count, dtype=jnp.int32), jnp.zeros(count, jnp.int32))
    flow = Flow(
        waiting=empty_rows(source, places),
        exited=none_exited(queue, output, memory, count + tile - 1, keep_state),
        output=empty_rows(output, tile + beyond),
        counts=jnp.zeros(stage.steps + 1, jnp.int32).at[0].set(rows),
        done=jnp.int32(0),
        executed=no_rows((count + 2 * tile) * stage.steps),
    )

    def turn(flow: Flow) -> Flow:
        full = flow.counts >= tile
        deepest = stage.steps - jnp.argmax(full[::-1])
        i = jnp.where(full.any(), deepest, jnp.argmax(flow.counts > 0)).astype(jnp.int32)
        taken = jnp.minimum(flow.counts[i], tile)
        tiles = _take(source, flow, i, rows, taken, tile)
        weights = stage.step.select(i)

        def run(carry: Any, size: int) -> tuple[Any, ...]:
            begin, state, output = carry
            results = stage.step.apply(weights, i, take_tile(state, begin, size))
            return begin + size, *write_tile((state, output), results, begin)

        carry = jnp.int32(0), extended(tiles.state, beyond), flow.output
        ran, state, output = in_tiles(run, carry, tiling.sizes, tiling.ends(taken, tile))
        flow = flow._replace(
            output=output,
            counts=flow.counts.at[i].add(-taken),
            executed=counted(flow.executed, ran),
        )
        state, read = jax.tree.map(lambda a: a[:tile], (state, output))
        exits, memory, nan = read_exit(criterion, i, i == stage.steps - 1, read, tiles.memory)
        nan_exits = tiles.nan_exits + nan.astype(jnp.int32)
        after = Waiting(state, memory, tiles.row, nan_exits)
        return _join(flow, after, read, exits.astype(jnp.int32), i, taken)

    flow = loops.while_loop(lambda flow: (flow.counts > 0).any(), turn, flow)
    return in_queue_order(flow.exited, count, rows, stage, total(flow.executed))


def _take(source: Waiting, flow: Flow, i: Array, rows: Array, taken: Array, tile: int) -> Waiting:
    """The last `taken` rows of cohort i, or the next rows of the queue, then padding rows.

    Leaves are `[T, ...]`.
    """
    steps = jnp.arange(tile, dtype=jnp.int32)
    queued = jnp.minimum(rows - flow.counts[0] + steps, source.row.shape[0] - 1)
    waits = _begin(i, tile) + jnp.where(i > 0, flow.counts[i] - taken, 0) + steps
    from_queue = jax.tree.map(lambda a: a.at[queued].get(mode="promise_in_bounds"), source)
    return jax.tree.map(
        lambda a, b: jnp.where(i > 0, b, a), from_queue, read_rows(flow.waiting, waits)
    )


def _join(flow: Flow, after: Waiting, output: PyTree, exits: Array, i: Array, taken: Array) -> Flow:
    """Moves the first `taken` rows to the next cohort, or to the exited rows."""
    tile = exits.shape[0]
    order, survivors = survivors_first(exits, taken)
    joined = _begin(i + 1, tile) + flow.counts[i + 1]
    state = None if flow.exited.state is None else after.state
    exited = Exited(
        state, output, after.memory, after.row, after.nan_exits, jnp.full(tile, i, jnp.int32)
    )
    return flow._replace(
        waiting=write_tile(flow.waiting, read_rows(after, order), joined),
        exited=write_tile(flow.exited, read_rows(exited, jnp.roll(order, -survivors)), flow.done),
        counts=flow.counts.at[i + 1].add(survivors),
        done=flow.done + taken - survivors,
    )


def _begin(i: Array, tile: int) -> Array:
    """The first place of cohort i; cohort N holds no rows, and is space for the end of a tile."""
    return jnp.maximum(i - 1, 0) * (2 * tile - 1)
