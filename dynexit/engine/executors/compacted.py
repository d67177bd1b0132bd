"""The compacted executor: a block runs on tiles of live rows, so its time follows their number.

Rows have positions 0..B-1, with the live rows first. `source` is the place of each live row in the
buffers. A block processes the live rows tile by tile. A tile gathers its rows, runs the block and
the head, and writes the results at the positions of the rows. These are at or before the places
that have already been read:

    row      a b c d e f | g h      six live rows; g and h exited before
    source   0 2 3 | 5 6 8          tiles of three; places 1, 4 and 7 hold rows that exited
    before   a . b c . d e . f
    after    A B C D E F . . .      written in place, tile after tile

Only this is compiled once per tile size. Two operations follow once per block: the criterion, and
one sort of integers that puts the survivors before the rows that exit. The old positions of the
survivors are the `source` of the next block. The rows that exit are moved to a second set of
buffers, a few at a time, at their new positions, which do not change again:

    row      a c d f | b e g h      B and E exit
    source   0 2 3 5
    exited   . . . . B E G H

A survivor is moved only by the next tile that reads it. The numbers of tiles of each size that
cover n rows are planned while tracing (`tiling.py`). At the end all rows have exited, and one
gather puts them back into the order of the batch.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from dynexit.core.shapes import Array, Int, PyTree
from dynexit.core.stages import Stage
from dynexit.engine import loops
from dynexit.engine.counts import Counter, counted
from dynexit.engine.executors.moves import (
    empty_rows,
    extended,
    in_row_order,
    read_rows,
    survivors_first,
    take_tile,
    write_tile,
)
from dynexit.engine.executors.tiling import Tiling
from dynexit.engine.rows import Job, RowCarry, read_exit, where_rows

DECISION_BYTES = 2**18  # of output that one call of the criterion reads
SHARE = 4  # exited rows are moved in groups of the largest tile divided by this number
Tiles: TypeAlias = tuple[Any, ...]  # the carry of a loop over tiles, rows so far first


class Live(NamedTuple):
    """The buffers of live rows, one place per row.

    Attributes:
      state, memory: leaves `[P, ...]`; P is B, or more if a tile may exceed the batch.
      output: leaves `[P, ...]`, written by the last block.
      source: int32 `[few - 1 + P]`, the place of the live row at each position; position 0 is at
        index few - 1.
    """

    state: PyTree
    memory: PyTree
    output: PyTree
    source: Int[Array, "places"]


class Exited(NamedTuple):
    """The buffers of exited rows, leaves `[few - 1 + B, ...]`, with position 0 at index few - 1.

    The state is None if it is not kept.
    """

    state: PyTree
    output: PyTree
    memory: PyTree


class Carry(NamedTuple):
    """The carry of the loop over steps.

    Attributes:
      live, exited: the buffers.
      row: int32 `[P]`, the index of the row at each position: live rows in increasing order, then
        exited rows.
      nan_exits: int32 `[P]`, by position: the number of exits at which the output held a NaN.
      exit: int32 `[P]`, by position: the last exit that the row has reached.
      alive: int32 `[]`, the number of live rows.
      executed: rows x steps so far, a counter.
      side: the arrays that are indexed by row.
    """

    live: Live
    exited: Exited
    row: Int[Array, "P"]
    nan_exits: Int[Array, "P"]
    exit: Int[Array, "P"]
    alive: Int[Array, ""]
    executed: Counter
    side: PyTree


class Plan(NamedTuple):
    """The numbers of rows that are processed together.

    Attributes:
      tiling: tile sizes, within the batch.
      batch: B, the maximal number of live rows.
      few: the number of exited rows that are moved together.
      decided: the number of rows in one call of the criterion: all places, or fewer if the outputs
        are large.
    """

    tiling: Tiling
    batch: Any
    few: int
    decided: Any


def run_compacted(
    stages: tuple[Stage, ...],
    job: Job,
    rows: RowCarry,
    spaces: tuple[PyTree, ...],
    tilings: tuple[Tiling, ...],
    keep_state: bool,
) -> tuple[RowCarry, tuple[PyTree, ...]]:
    """Runs blocks on tiles of live rows; the results are those of `run_masked`.

    Args:
      stages, job, rows, spaces: as in `run_masked`.
      tilings: one tiling per stage.
      keep_state: whether to return the states; without it the second result is empty.
    """
    batch = rows.alive.shape[0]
    plans, places = plan_for(batch, rows.output, tilings)
    few = plans[0].few
    carry = all_live(rows, few, places)
    states: list[Callable[[Array], PyTree]] = []
    for k, (stage, space, plan) in enumerate(zip(stages, spaces, plans, strict=True)):
        before = carry.alive
        carry = with_room(carry, empty_rows(space, few - 1 + batch) if keep_state else None)
        run = run_once if stage.steps == 1 else run_loop
        carry = run(stage, job, carry, space, plan)
        if keep_state:
            limits = before if k else None, carry if k < len(stages) - 1 else None
            states.append(functools.partial(_state_after, by_position(carry, few), *limits))
    account = carry.row, carry.nan_exits, carry.exit
    place, nan_exits, exit = in_row_order(*(a[:batch] for a in account))
    back = lambda tree: jax.tree.map(lambda a: a[place], tree)
    exited = by_position(carry, few)
    final = RowCarry(
        row=rows.row,
        state=None,
        output=back(exited.output),
        exit=exit,
        memory=back(exited.memory),
        alive=jnp.zeros(batch, bool),
        nan_exits=nan_exits,
        executed=carry.executed,
        side=carry.side,
    )
    return final, tuple(state_after(place) for state_after in states)


def plan_for(batch: Any, output: PyTree, tilings: Sequence[Tiling]) -> tuple[tuple[Plan, ...], Any]:
    """A plan for every stage, and the number of places in the buffers of live rows.

    Args:
      batch: rows B.
      output: the output of an exit, leaves `[B, ...]`.
      tilings: one tiling per stage.
    """
    tilings = [tiling.within(batch) for tiling in tilings]
    few = max(1, max(tiling.sizes[0] for tiling in tilings) // SHARE)
    places = batch + max(tiling.padding(batch) for tiling in tilings)
    row = sum(math.prod(a.shape[1:]) * a.dtype.itemsize for a in jax.tree.leaves(output))
    most = DECISION_BYTES // max(1, row)
    if isinstance(places, int) and places <= most:
        return tuple(Plan(tiling, batch, few, places) for tiling in tilings), places
    decided = max(1, min(*(tiling.sizes[0] for tiling in tilings), most))
    if isinstance(places, int):
        places = max(places, -(-batch // decided) * decided)
    return tuple(Plan(tiling, batch, few, decided) for tiling in tilings), places


def by_position(carry: Carry, few: int) -> Exited:
    """The buffers of exited rows from position 0 on."""
    return jax.tree.map(lambda a: a[few - 1 :], carry.exited)


def with_room(carry: Carry, state: PyTree) -> Carry:
    """The carry with a buffer for the states of rows that exit."""
    return carry._replace(exited=carry.exited._replace(state=state))


def all_live(rows: RowCarry, few: int, places: Any) -> Carry:
    """The carry in which all rows are live, without a buffer for the states of exited rows.

    Args:
      rows: from `begin`.
      few: the number of exited rows that are moved together.
      places: the number of places in the buffers of live rows.
    """
    batch = rows.alive.shape[0]
    account = rows.state, rows.memory, rows.row, rows.nan_exits
    state, memory, row, nan_exits = extended(account, places - batch)
    source = jnp.arange(1 - few, places, dtype=jnp.int32)
    live = Live(state, memory, empty_rows(rows.output, places), source)
    exited = Exited(None, *empty_rows((rows.output, rows.memory), few - 1 + batch))
    exit = jnp.zeros_like(row)
    return Carry(live, exited, row, nan_exits, exit, jnp.int32(batch), rows.executed, rows.side)


def run_loop(stage: Stage, job: Job, carry: Carry, space: PyTree, plan: Plan) -> Carry:
    """All steps of a stage that keeps the shape of the state."""

    def body(loop: Any) -> tuple[Array, Carry]:
        i, carry = loop
        return i + 1, advance_live(stage, i, job, carry, plan)

    go_on = lambda loop: (loop[0] < stage.steps) & (loop[1].alive > 0)
    return loops.while_loop(go_on, body, (jnp.int32(0), carry))[1]


def run_once(stage: Stage, job: Job, carry: Carry, space: PyTree, plan: Plan) -> Carry:
    """A stage of one step, which writes to another buffer and may change the state's shape."""
    new = empty_rows(space, carry.row.shape[0])
    return advance_live(stage, jnp.int32(0), job, carry, plan, new)


def advance_live(
    stage: Stage,
    i: Int[Array, ""] | None,
    job: Job,
    carry: Carry,
    plan: Plan,
    new: PyTree = None,
) -> Carry:
    """One step on all live rows.

    Args:
      stage: the stage of the step.
      i: int32 `[]`, the index of the step in its stage; None if rows are at different steps, each
        at the step after its last exit.
      job: the criterion and the size of the run.
      carry: the carry so far.
      plan: the numbers of rows that are processed together.
      new: the buffer for the new states if their shape changes; None to write in place.
    """
    live, count, few = carry.live, carry.alive, plan.few
    together = i is not None
    exit = stage.first + i if together else carry.exit + 1
    weights = stage.step.select(i if together else jnp.int32(0))  # once, not once per tile

    def run(tiles: Any, size: int) -> Tiles:
        begin, state, output, side = tiles
        at = take_tile(exit, begin, size) if i is None else i
        place = take_tile(live.source, begin + few - 1, size)
        before = read_rows(state if new is None else live.state, place)
        row = take_tile(carry.row, begin, size)
        present = begin + jnp.arange(size, dtype=jnp.int32) < count
        after, read, side = job.apply(stage, weights, at, before, row, present, side)
        return begin + size, *write_tile((state, output), (after, read), begin), side

    tiles = jnp.int32(0), live.state if new is None else new, live.output, carry.side
    ends = plan.tiling.ends(count, plan.batch)
    ran, state, output, side = in_tiles(run, tiles, plan.tiling.sizes, ends)
    memory, exits, nan = _decide(job, exit, live, output, count, plan)
    position = jnp.arange(carry.row.shape[0], dtype=jnp.int32)
    alive = position < count
    exit = jnp.where(alive, exit, carry.exit)
    nan_exits = carry.nan_exits + jnp.where(alive, nan, 0)
    along = carry.row, nan_exits, *(() if together else (exit,))
    source, survivors, row, nan_exits, *own = survivors_first(exits, count, *along)
    live = Live(state, memory, output, jnp.pad(source, (few - 1, 0)))
    return Carry(
        live=live,
        exited=_move(live, carry.exited, survivors, count, few),
        row=row,
        nan_exits=nan_exits,
        exit=exit if together else own[0],
        alive=survivors,
        executed=counted(carry.executed, ran),
        side=side,
    )


def _decide(
    job: Job, exit: Array, live: Live, output: PyTree, count: Array, plan: Plan
) -> tuple[PyTree, Array, Array]:
    """The criterion's memory, which rows exit, and which outputs hold a NaN.

    The last two are int32 `[P]`, 0 or 1 by position, and undefined from position `count` on.
    """
    places, rows = jax.tree.leaves(output)[0].shape[0], plan.decided

    def ask(begin: Any, memory: PyTree) -> tuple[PyTree, Array, Array]:
        before = read_rows(memory, take_tile(live.source, begin + plan.few - 1, rows))
        read = output if rows == places else take_tile(output, begin, rows)
        at = exit if rows == places or exit.ndim == 0 else take_tile(exit, begin, rows)
        exits, after, nan = read_exit(job.criterion, at, at == job.last, read, before)
        return after, exits.astype(jnp.int32), nan.astype(jnp.int32)

    def ask_some(carry: Any) -> tuple[Any, ...]:
        begin, *buffers = carry
        return begin + rows, *write_tile(tuple(buffers), ask(begin, buffers[0]), begin)

    if rows == places:
        return ask(0, live.memory)
    zeros = jnp.zeros(places, jnp.int32)
    go_on = lambda carry: carry[0] < count
    return loops.while_loop(go_on, ask_some, (jnp.int32(0), live.memory, zeros, zeros))[1:]


def in_tiles(
    run: Callable[..., Tiles], carry: Tiles, sizes: Sequence[int], ends: Int[Array, "sizes"]
) -> Tiles:
    """Calls `run(carry, size)` for each tile; each size is one more copy of `run` in the program.

    Args:
      run: returns the carry, with its first entry, int32 `[]`, increased by `size`.
      carry: a tuple whose first entry is 0.
      sizes: rows per tile, decreasing.
      ends: int32 `[sizes]`, traced: the end of the tiles of each size.
    """
    for k, size in enumerate(sizes):
        go_on = lambda carry, end=ends[k]: carry[0] < end
        carry = loops.while_loop(go_on, functools.partial(run, size=size), carry)
    return carry


def _move(live: Live, exited: Exited, survivors: Array, count: Array, few: int) -> Exited:
    """Moves the rows at positions survivors..count-1 to the buffers of exited rows.

    The last rows are moved first, since the last group may overwrite positions before `survivors`,
    which hold no exited row.
    """
    tree = None if exited.state is None else live.state, live.output, live.memory

    def move(carry: Any) -> tuple[Array, PyTree]:
        end, buffers = carry
        rows = read_rows(tree, take_tile(live.source, end - 1, few))
        return end - few, write_tile(buffers, rows, end - 1)

    go_on = lambda carry: carry[0] > survivors
    return Exited(*loops.while_loop(go_on, move, (count, tuple(exited)))[1])


def _state_after(exited: Exited, before: Array | None, after: Carry | None, place: Array) -> PyTree:
    """The state of every row after a stage, in the order of the batch.

    It is zeros for a row that did not enter the stage.

    Args:
      exited: the buffers, by position.
      before: the number of rows that were live before the stage; None for all rows.
      after: the carry after the stage; None if all rows had exited.
      place: int32 `[B]`, the final position of each row.
    """
    state = jax.tree.map(lambda a: a[place], exited.state)
    if before is not None:
        state = where_rows(place < before, state, jax.tree.map(jnp.zeros_like, state))
    if after is None:
        return state
    batch, places = place.shape[0], after.row.shape[0]
    source = after.live.source[-places:]
    here = jnp.arange(places, dtype=jnp.int32) < after.alive
    stands = jnp.zeros(batch, jnp.int32)
    stands = stands.at[jnp.where(here, after.row, batch)].set(source, mode="drop")
    survived = jax.tree.map(lambda a: a[stands], after.live.state)
    return where_rows(place < after.alive, survived, state)
