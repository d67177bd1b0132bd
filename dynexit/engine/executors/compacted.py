"""The compacted executor: a block runs on tiles of live rows, so its time follows their number.

Rows stand in positions 0..B-1, the live ones first. `source` says at which place of the buffers a
live row is found. A block takes the live rows tile by tile: a tile gathers its rows, runs the block
and the head, and writes what they gave at the positions of the rows, which are at or before the
places that were read already:

    row      a b c d e f | g h      six live rows; g and h exited before
    source   0 2 3 | 5 6 8          tiles of three; places 1, 4 and 7 hold rows that exited
    before   a . b c . d e . f
    after    A B C D E F . . .      written in place, tile after tile

Only that is compiled once per tile size. The rest is done once per block: the criterion, and one
sort of integers that puts the survivors before the rows that exit. The positions at which these
stood are the next block's `source`, and the rows that exit are moved to a second set of buffers, a
few at a time, where they keep the position that they have now:

    row      a c d f | b e g h      B and E exit
    source   0 2 3 5
    exited   . . . . B E G H

So a survivor is moved by the tile that reads it next, and by nothing else. How many tiles of which
size cover n rows is planned while tracing (`tiling.py`). At the end all rows have exited, and one
gather puts them back into the order of the batch.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynexit.core.checks import Stage
from dynexit.core.types import Array, PyTree
from dynexit.engine import loops
from dynexit.engine.counts import counted
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
from dynexit.engine.rows import Job, Rows, read_exit, where_rows

DECISION_BYTES = 2**18  # of output that the criterion is asked about at a time
SHARE = 4  # exited rows are moved by this part of the largest tile at a time


class Live(NamedTuple):
    """The buffers of the live rows, by place.

    Attributes:
      state, memory: leaves `[P, ...]`; P is B, or more where a tile may reach beyond the batch.
      output: likewise, what the last block wrote.
      source: int32 `[few - 1 + P]`, by position, which begin at few - 1: the place of a live row.
    """

    state: PyTree
    memory: PyTree
    output: PyTree
    source: Array


class Exited(NamedTuple):
    """The buffers of the rows that have exited: leaves `[few - 1 + B, ...]`, position 0 at few - 1;
    state is None where it is not kept.
    """

    state: PyTree
    output: PyTree
    memory: PyTree


class Course(NamedTuple):
    """Where a run stands.

    Attributes:
      live, exited: the buffers.
      row: int32 `[P]`, which row stands at a position: live rows rising, then those that exited.
      nan_exits: int32 `[P]`, by position: exits at which the row had a NaN.
      exit: int32 `[P]`, by position: the last exit that the row came to.
      count: int32 `[]`, how many rows are live.
      executed: rows x steps so far, a counter.
      side: what is addressed by row.
    """

    live: Live
    exited: Exited
    row: Array
    nan_exits: Array
    exit: Array
    count: Array
    executed: Array
    side: PyTree


class Plan(NamedTuple):
    """How many rows are treated at a time.

    Attributes:
      tiling: tile sizes, within the batch.
      batch: B, the rows that may be live.
      few: exited rows that are moved at a time.
      decided: rows that the criterion is asked about at a time; all places, or fewer where their
        outputs are large.
    """

    tiling: Tiling
    batch: Any
    few: int
    decided: Any


def run_compacted(
    stages: tuple[Stage, ...],
    job: Job,
    rows: Rows,
    spaces: tuple[PyTree, ...],
    tilings: tuple[Tiling, ...],
    keep_state: bool,
) -> tuple[Rows, tuple]:
    """As `run_masked`, on tiles of live rows.

    Args:
      stages, job, rows, spaces: as there.
      tilings: of each stage.
      keep_state: whether the second result is wanted; else it is empty.
    """
    batch = rows.alive.shape[0]
    plans, places = plan_for(batch, rows.output, tilings)
    few = plans[0].few
    course = set_out(rows, few, places)
    states = []
    for k, (stage, space, plan) in enumerate(zip(stages, spaces, plans, strict=True)):
        before = course.count
        course = with_room(course, empty_rows(space, few - 1 + batch) if keep_state else None)
        run = run_once if stage.steps == 1 else run_loop
        course = run(stage, job, course, space, plan)
        if keep_state:
            limits = before if k else None, course if k < len(stages) - 1 else None
            states.append(functools.partial(_state_after, by_position(course, few), *limits))
    account = course.row, course.nan_exits, course.exit
    place, nan_exits, exit = in_row_order(*(a[:batch] for a in account))
    back = lambda tree: jax.tree.map(lambda a: a[place], tree)
    exited = by_position(course, few)
    final = Rows(
        row=rows.row,
        state=None,
        output=back(exited.output),
        exit=exit,
        memory=back(exited.memory),
        alive=jnp.zeros(batch, bool),
        nan_exits=nan_exits,
        executed=course.executed,
        side=course.side,
    )
    return final, tuple(state_after(place) for state_after in states)


def plan_for(batch: Any, output: PyTree, tilings: Sequence[Tiling]) -> tuple[tuple[Plan, ...], Any]:
    """A plan for every stage, and how many places the buffers of live rows need.

    Args:
      batch: rows B.
      output: an exit's output, leaves `[B, ...]`.
      tilings: of each stage.
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


def by_position(course: Course, few: int) -> Exited:
    """The buffers of exited rows from position 0 on."""
    return jax.tree.map(lambda a: a[few - 1 :], course.exited)


def with_room(course: Course, state: PyTree) -> Course:
    """The course with a buffer for the states of rows that exit."""
    return course._replace(exited=course.exited._replace(state=state))


def set_out(rows: Rows, few: int, places: Any) -> Course:
    """All rows live, without buffers for exited states.

    Args:
      rows: from `begin`.
      few: exited rows that are moved at a time.
      places: of the buffers of live rows.
    """
    batch = rows.alive.shape[0]
    account = rows.state, rows.memory, rows.row, rows.nan_exits
    state, memory, row, nan_exits = extended(account, places - batch)
    source = jnp.arange(1 - few, places, dtype=jnp.int32)
    live = Live(state, memory, empty_rows(rows.output, places), source)
    exited = Exited(None, *empty_rows((rows.output, rows.memory), few - 1 + batch))
    exit = jnp.zeros_like(row)
    return Course(live, exited, row, nan_exits, exit, jnp.int32(batch), rows.executed, rows.side)


def run_loop(stage: Stage, job: Job, course: Course, space: PyTree, plan: Plan) -> Course:
    """All steps of a stage that keeps the state's shape."""

    def body(carry):
        i, course = carry
        return i + 1, advance_live(stage, i, job, course, plan)

    go_on = lambda carry: (carry[0] < stage.steps) & (carry[1].count > 0)
    return loops.while_loop(go_on, body, (jnp.int32(0), course))[1]


def run_once(stage: Stage, job: Job, course: Course, space: PyTree, plan: Plan) -> Course:
    """A stage of one step, which may change the state's shape: it writes to another buffer."""
    new = empty_rows(space, course.row.shape[0])
    return advance_live(stage, jnp.int32(0), job, course, plan, new)


def advance_live(
    stage: Stage, i: Array | None, job: Job, course: Course, plan: Plan, new: PyTree = None
) -> Course:
    """One step on all live rows.

    Args:
      stage: whose step runs.
      i: int32 `[]`, which of its steps; None where rows are at steps of their own, each at the one
        after the exit that it came to last.
      job: what all steps have in common.
      course: where the run stands.
      plan: how many rows are treated at a time.
      new: the buffer for the new states where they change their shape; None to write in place.
    """
    live, count, few = course.live, course.count, plan.few
    together = i is not None
    exit = stage.first + i if together else course.exit + 1
    weights = stage.step.select(i if together else jnp.int32(0))  # once, not once per tile

    def run(carry, size: int):
        begin, state, output, side = carry
        at = i if together else take_tile(exit, begin, size)
        place = take_tile(live.source, begin + few - 1, size)
        before = read_rows(state if new is None else live.state, place)
        row = take_tile(course.row, begin, size)
        present = begin + jnp.arange(size, dtype=jnp.int32) < count
        after, read, side = job.apply(stage, weights, at, before, row, present, side)
        return begin + size, *write_tile((state, output), (after, read), begin), side

    carry = jnp.int32(0), live.state if new is None else new, live.output, course.side
    ends = plan.tiling.ends(count, plan.batch)
    ran, state, output, side = in_tiles(run, carry, plan.tiling.sizes, ends)
    memory, exits, nan = _decide(job, exit, live, output, count, plan)
    position = jnp.arange(course.row.shape[0], dtype=jnp.int32)
    alive = position < count
    exit = jnp.where(alive, exit, course.exit)
    nan_exits = course.nan_exits + jnp.where(alive, nan, 0)
    along = course.row, nan_exits, *(() if together else (exit,))
    source, survivors, row, nan_exits, *own = survivors_first(exits, count, *along)
    live = Live(state, memory, output, jnp.pad(source, (few - 1, 0)))
    return Course(
        live=live,
        exited=_move(live, course.exited, survivors, count, few),
        row=row,
        nan_exits=nan_exits,
        exit=exit if together else own[0],
        count=survivors,
        executed=counted(course.executed, ran),
        side=side,
    )


def _decide(
    job: Job, exit: Array, live: Live, output: PyTree, count: Array, plan: Plan
) -> tuple[PyTree, Array, Array]:
    """The criterion's memory, and by position int32 `[P]` 1 where a row exits, and 1 where its
    output holds a NaN; of no meaning from position `count` on.
    """
    places, rows = jax.tree.leaves(output)[0].shape[0], plan.decided

    def ask(begin, memory):
        before = read_rows(memory, take_tile(live.source, begin + plan.few - 1, rows))
        read = output if rows == places else take_tile(output, begin, rows)
        at = exit if rows == places or exit.ndim == 0 else take_tile(exit, begin, rows)
        exits, after, nan = read_exit(job.criterion, at, at == job.last, read, before)
        return after, exits.astype(jnp.int32), nan.astype(jnp.int32)

    def ask_some(carry):
        begin, *buffers = carry
        return begin + rows, *write_tile(tuple(buffers), ask(begin, buffers[0]), begin)

    if rows == places:
        return ask(0, live.memory)
    zeros = jnp.zeros(places, jnp.int32)
    go_on = lambda carry: carry[0] < count
    return loops.while_loop(go_on, ask_some, (jnp.int32(0), live.memory, zeros, zeros))[1:]


def in_tiles(run: Callable, carry: tuple, sizes: Sequence[int], ends: Array) -> tuple:
    """`run(carry, size)`, tile after tile; each size is one more copy of `run` in the program.

    Args:
      run: returns the carry, whose first entry, int32 `[]`, has grown by `size`.
      carry: its first entry is 0.
      sizes: rows per tile, falling.
      ends: int32 `[sizes]`, traced: where the tiles of each size end.
    """
    for k, size in enumerate(sizes):
        go_on = lambda carry, end=ends[k]: carry[0] < end
        carry = loops.while_loop(go_on, functools.partial(run, size=size), carry)
    return carry


def _move(live: Live, exited: Exited, survivors: Array, count: Array, few: int) -> Exited:
    """The rows at positions survivors..count-1 moved to the buffers of those that exited.

    From the last to the first, for what a few too many overwrite must not be in use.
    """
    tree = None if exited.state is None else live.state, live.output, live.memory

    def move(carry):
        end, buffers = carry
        rows = read_rows(tree, take_tile(live.source, end - 1, few))
        return end - few, write_tile(buffers, rows, end - 1)

    go_on = lambda carry: carry[0] > survivors
    return Exited(*loops.while_loop(go_on, move, (count, tuple(exited)))[1])


def _state_after(
    exited: Exited, before: Array | None, after: Course | None, place: Array
) -> PyTree:
    """The state of every row after a stage, in the order of the batch; zeros for rows that never
    came to it.

    Args:
      exited: the buffers, by position.
      before: rows that were live before the stage; None for all of them.
      after: where the run stood after it; None where all rows had exited.
      place: int32 `[B]`, the position of each row in the end.
    """
    state = jax.tree.map(lambda a: a[place], exited.state)
    if before is not None:
        state = where_rows(place < before, state, jax.tree.map(jnp.zeros_like, state))
    if after is None:
        return state
    batch, places = place.shape[0], after.row.shape[0]
    source = after.live.source[-places:]
    here = jnp.arange(places, dtype=jnp.int32) < after.count
    stands = jnp.zeros(batch, jnp.int32)
    stands = stands.at[jnp.where(here, after.row, batch)].set(source, mode="drop")
    went_on = jax.tree.map(lambda a: a[stands], after.live.state)
    return where_rows(place < after.count, went_on, state)
