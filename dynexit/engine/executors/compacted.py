"""The compacted schedule: a block runs on tiles of rows that are still alive, so its time follows
their number.

Live rows stand in places 0, 1, ... of one set of buffers. A block takes them tile by tile; after
each tile those of its rows that go on are written back without a gap behind the survivors of the
tiles before, and those that leave are appended to a second set of buffers, in the order in which
they left:

    live   a b c d | e f g h | i j . .        tiles of 4; b, c and h leave, the last tile holds two
           rows of no one a d e f   g i j                    after the block gone   b c h

So nothing but the tile at hand is ever moved, and no row is ever looked for. How many tiles of
which size cover n rows is planned while tracing (`tiling.py`). At the end the departed rows, by
then all, are put back into the order of the batch.

Where the batch size is symbolic (`dx.export`) no size can be left out for being larger than the
batch, and no plan can be kept
within it: the live rows then have room for the end of a tile beyond the batch as well, and plans
are looked up in another way.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dynexit.core.checks import Stage
from dynexit.core.types import Array, PyTree
from dynexit.engine import loops
from dynexit.engine.executors.tiling import Tiling
from dynexit.engine.rows import Job, Rows, read_exit, where_rows, zeros


class Live(NamedTuple):
    """Rows that go on, in places 0..count-1 of leaves `[B, ...]`; what stands beyond is left over
    (more where B is symbolic).
    """

    state: PyTree
    memory: PyTree
    row: Array
    nan_exits: Array


class Gone(NamedTuple):
    """Rows that have left, in the order in which they did; the leaves have room for the end of a
    tile beyond B.
    """

    state: PyTree
    output: PyTree
    memory: PyTree
    row: Array
    nan_exits: Array
    exit: Array


class Course(NamedTuple):
    """Where a run stands: the rows, how many of them live and how many have left, rows x steps so
    far (int32 `[]`), and what is addressed by row."""

    live: Live
    gone: Gone
    alive: Array
    left: Array
    executed: Array
    side: PyTree


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
    static = isinstance(batch, int)
    tilings = tuple(tiling.within(batch) for tiling in tilings) if static else tilings
    beyond = max(tiling.waste(batch) if static else tiling.sizes[0] - 1 for tiling in tilings)
    course = set_out(rows, batch + beyond)
    if not static:
        longer = lambda a: jnp.pad(a, [(0, beyond)] + [(0, 0)] * (a.ndim - 1))
        course = course._replace(live=jax.tree.map(longer, course.live))
    roomy = lambda tree: jax.tree.map(
        lambda a: jnp.zeros((batch + beyond, *a.shape[1:]), a.dtype), tree
    )
    states = []
    for stage, space, tiling in zip(stages, spaces, tilings, strict=True):
        before = course.left
        course = course._replace(
            gone=course.gone._replace(state=roomy(space) if keep_state else None)
        )
        run = _once if stage.steps == 1 else run_loop
        course = run(stage, job, course, space, tiling)
        if keep_state:
            after = course.gone.state, before, course.live, course.alive, course.left
            states.append(functools.partial(_state_after, *after))
    gone = course.gone
    place = _inverse(gone.row[:batch])
    back = lambda tree: jax.tree.map(lambda a: a[place], tree)
    account = Rows(
        row=rows.row,
        state=None,
        output=back(gone.output),
        exit=gone.exit[place],
        memory=back(gone.memory),
        alive=jnp.zeros(batch, bool),
        nan_exits=gone.nan_exits[place],
        executed=course.executed,
        side=course.side,
    )
    return account, tuple(state_after(place) for state_after in states)


def set_out(rows: Rows, room: int) -> Course:
    """All rows live, and room for so many to leave; without buffers for their states."""
    roomy = lambda tree: jax.tree.map(lambda a: jnp.zeros((room, *a.shape[1:]), a.dtype), tree)
    count, batch = jnp.zeros(room, jnp.int32), rows.alive.shape[0]
    live = Live(rows.state, rows.memory, rows.row, rows.nan_exits)
    gone = Gone(None, roomy(rows.output), roomy(rows.memory), count, count, count)
    return Course(live, gone, jnp.int32(batch), jnp.int32(0), rows.executed, rows.side)


def run_loop(stage: Stage, job: Job, course: Course, space: PyTree, tiling: Tiling) -> Course:
    """All steps of a stage that keeps the state's shape."""

    def body(carry):
        i, course = carry
        return i + 1, _advance(stage, i, job, course, course.live.state, tiling)

    go_on = lambda carry: (carry[0] < stage.steps) & (carry[1].alive > 0)
    return loops.while_loop(go_on, body, (jnp.int32(0), course))[1]


def _once(stage: Stage, job: Job, course: Course, space: PyTree, tiling: Tiling) -> Course:
    """A stage of one step, which may change the state's shape: it reads one buffer and writes
    another.
    """
    source = course.live.state
    rows = course.live.row.shape[0]
    empty = zeros(
        jax.tree.map(lambda s: jax.ShapeDtypeStruct((rows, *s.shape[1:]), s.dtype), space)
    )
    course = course._replace(live=course.live._replace(state=empty))
    return _advance(stage, jnp.int32(0), job, course, source, tiling)


def _advance(
    stage: Stage, i: Array, job: Job, course: Course, source: PyTree, tiling: Tiling
) -> Course:
    """One step on all live rows, whose states are in `source`."""
    batch = course.live.row.shape[0]
    weights = stage.step.select(i)  # once per block, not once per tile
    static = isinstance(batch, int)
    counts = (
        jnp.asarray(tiling.counts(batch))[course.alive]
        if static
        else tiling.counts_for(course.alive)
    )
    exit = stage.first + i
    within_loop = source is course.live.state

    def run(carry, size: int):
        begin, course = (
            carry  # course.alive counts the survivors so far: those of the tiles before `begin`
        )
        live = course.live
        place = begin + jnp.arange(size, dtype=jnp.int32)
        read = functools.partial(read_rows, place=place)
        occupied, row = place < total, read(live.row)
        state, output, side = job.apply(
            stage,
            weights,
            i,
            read(live.state if within_loop else source),
            row,
            occupied,
            course.side,
        )
        leaves, memory, nan = read_exit(
            job.criterion, exit, exit == job.last, output, read(live.memory)
        )
        parting = part(leaves, occupied)
        after = Live(state, memory, row, read(live.nan_exits) + nan.astype(jnp.int32))
        departed = Gone(
            None if course.gone.state is None else state,
            output,
            memory,
            after.row,
            after.nan_exits,
            jnp.full(size, exit, jnp.int32),
        )
        return begin + size, Course(
            write_rows(live, after, parting.stay, course.alive),
            write_rows(course.gone, departed, parting.leave, course.left),
            course.alive + parting.staying,
            course.left + parting.leaving,
            course.executed + size,
            side,
        )

    total = course.alive
    carry = jnp.int32(0), course._replace(alive=jnp.int32(0))
    for k, size in enumerate(tiling.sizes):
        carry = loops.repeat(counts[k], functools.partial(run, size=size), carry)
    return carry[1]


def read_rows(tree: Any, place: Array) -> Any:
    """The rows of a tile, at places that follow one another.

    One row is read twice, and kept once: XLA makes a slice of a gather of one row, fuses it into
      all that uses it, the writing of
    the tile among it, and then copies the whole buffer to be able to read it after that.
    """
    if place.shape[0] == 1:
        return jax.tree.map(
            lambda a: a.at[jnp.tile(place, 2)].get(
                mode="promise_in_bounds", indices_are_sorted=True
            )[:1],
            tree,
        )
    return jax.tree.map(
        lambda a: a.at[place].get(
            mode="promise_in_bounds", unique_indices=True, indices_are_sorted=True
        ),
        tree,
    )


class Parting(NamedTuple):
    """How the rows of a tile part.

    Attributes:
      stay: int32 `[t]`, the tile's rows in the order in which they are written among those that go
        on, these first.
      leave: int32 `[t]`, likewise among the departed.
      staying, leaving: int32 `[]`, how many do; what stands behind them is left over.
    """

    stay: Array
    leave: Array
    staying: Array
    leaving: Array


def part(leaves: Array, occupied: Array) -> Parting:
    """From bool `[t]`: which rows leave, and which are rows at all."""
    order = order_by_group(jnp.where(occupied, leaves.astype(jnp.int32), 2))
    staying, leaving = (
        (occupied & ~leaves).sum(dtype=jnp.int32),
        (occupied & leaves).sum(dtype=jnp.int32),
    )
    return Parting(order, jnp.roll(order, -staying), staying, leaving)


def order_by_group(group: Array) -> Array:
    """The order of a tile's rows `[t]` by their group, 0..2, and within a group as they stood."""
    size = group.shape[0]
    return lax.sort(group * size + jnp.arange(size, dtype=jnp.int32)) % size


def write_rows(buffers: Any, tile: Any, order: Array, start: Array) -> Any:
    """The rows of a tile in the given order, written from place `start` on."""
    take = lambda a: a.at[order].get(mode="promise_in_bounds", unique_indices=True)
    return jax.tree.map(
        lambda a, b: lax.dynamic_update_slice_in_dim(a, take(b), start, 0), buffers, tile
    )


def _state_after(
    gone: PyTree, before: Array, live: Live, alive: Array, left: Array, place: Array
) -> PyTree:
    """The state of every row after a stage, in the order of the batch; zeros for rows that never
    came to it.

    Rows at places before..left-1 of `gone` left in the stage; the `alive` rows of `live` went on to
    the next.
    """
    batch = place.shape[0]
    stands = jnp.arange(batch, dtype=jnp.int32)
    live_place = (
        jnp.zeros(batch, jnp.int32)
        .at[jnp.where(stands < alive, live.row[:batch], batch)]
        .set(stands, mode="drop")
    )
    here = (place >= before) & (place < left)
    departed = jax.tree.map(
        lambda a: jnp.where(_wide(here, a), a[place], jnp.zeros_like(a[:1])), gone
    )
    went_on = jax.tree.map(lambda a: a[live_place], live.state)
    return where_rows(place >= left, went_on, departed)


def _wide(mask: Array, like: Array) -> Array:
    return mask.reshape(mask.shape + (1,) * (like.ndim - 1))


def _inverse(row: Array) -> Array:
    """Where each row stands, from which row stands where."""
    return (
        jnp.zeros_like(row)
        .at[row]
        .set(jnp.arange(row.shape[0], dtype=jnp.int32), unique_indices=True)
    )
