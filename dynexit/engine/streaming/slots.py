"""Streaming through a tied step: rows at different iterations run side by side in slots.

A turn runs one iteration of all slots. The slot of a row that exits is refilled with the next row
of the queue; all other rows keep their slots:

    slots   a b c d   iteration 7 2 9 4     b and d exit
    slots   a e c f   iteration 8 0 10 0    e and f are taken from the queue

When the queue is empty, slots of exited rows stay empty. When tiles of the remaining rows cost less
than a turn of all slots, these rows run as in `compacted.py`. So the block is compiled once for
every tile size, as there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.shapes import Array, Int, PyTree, Rows
from dynexit.core.stages import Stage
from dynexit.core.types import Criterion, Halted, Memory
from dynexit.engine import loops
from dynexit.engine.counts import Counter, counted, no_rows, total
from dynexit.engine.executors.compacted import (
    advance_live,
    all_live,
    by_position,
    plan_for,
    with_room,
)
from dynexit.engine.executors.moves import (
    empty_rows,
    order_by_group,
    read_rows,
    take_tile,
    write_tile,
)
from dynexit.engine.executors.tiling import Tiling
from dynexit.engine.rows import Job, begin, read_exit
from dynexit.engine.streaming.queues import Exited, Waiting, in_queue_order, none_exited

SHARE = 4  # slots are refilled in groups of a quarter of all slots


class Pool(NamedTuple):
    """The carry of the loop over turns.

    Attributes:
      slots: the rows in slots, leaves `[S, ...]`; the row index of an empty slot is M.
      age: int32 `[S]`, the number of iterations of each row so far.
      exited: exited rows, with space for S rows beyond the queue.
      alive, drawn, done: int32 `[]`; the numbers of rows in slots, taken from the queue, and in
        `exited`.
      executed: rows x steps so far, a counter.
    """

    slots: Waiting
    age: Int[Array, "S"]
    exited: Exited
    alive: Int[Array, ""]
    drawn: Int[Array, ""]
    done: Int[Array, ""]
    executed: Counter


def run_slots(
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
    """Runs a queue through a tied step.

    The arguments are those of `run_cohorts`, except that the criterion receives `i` `[b]`.
    """
    count = jax.tree.leaves(queue)[0].shape[0]
    smaller, fewer = _smaller(tiling.within(slots))
    weights = stage.step.select(jnp.int32(0))
    source = Waiting(queue, memory, jnp.arange(count, dtype=jnp.int32), jnp.zeros(count, jnp.int32))
    first, taken = jnp.arange(slots, dtype=jnp.int32), jnp.minimum(slots, rows)
    begun = jax.tree.map(lambda a: a[:slots], source)
    pool = Pool(
        slots=begun._replace(row=jnp.where(first < rows, first, count)),
        age=jnp.zeros(slots, jnp.int32),
        exited=none_exited(queue, output, memory, count + slots, keep_state),
        alive=taken,
        drawn=taken,
        done=jnp.int32(0),
        executed=no_rows((count + 2 * slots) * stage.steps),
    )
    turn = lambda pool: _turn(stage, weights, criterion, source, rows, pool)
    pool = loops.while_loop(lambda pool: pool.alive > fewer, turn, pool)
    if smaller is not None:
        job = Job(criterion, stage.steps - 1, count)
        pool = _last_turns(stage, job, output, smaller, pool)
    return in_queue_order(pool.exited, count, rows, stage, total(pool.executed))


def _smaller(tiling: Tiling) -> tuple[Tiling | None, int]:
    """The tiling without its largest size, and the maximal number of rows for which it is cheaper.

    It is compared with one tile of the largest size. The result is None and 0 if it is never
    cheaper.
    """
    slots, cost = tiling.sizes[0], tiling.costs[0]
    if len(tiling.sizes) == 1:
        return None, 0
    rest = Tiling(tiling.sizes[1:], tiling.costs[1:])
    fewer = int(np.flatnonzero(rest.seconds(slots) < cost).max())
    return (rest, fewer) if fewer else (None, 0)


def _turn(
    stage: Stage, weights: PyTree, criterion: Criterion, source: Waiting, rows: Array, pool: Pool
) -> Pool:
    """Runs one iteration of all slots and refills the slots of rows that exit."""
    state, output = stage.step.apply(weights, pool.age, pool.slots.state)
    last = pool.age == stage.steps - 1
    exits, memory, nan = read_exit(criterion, pool.age, last, output, pool.slots.memory)
    slots, count = exits.shape[0], source.row.shape[0]
    exits &= pool.slots.row < count
    nan_exits = pool.slots.nan_exits + nan.astype(jnp.int32)
    after = Waiting(state, memory, pool.slots.row, nan_exits)
    exiting, few = exits.sum(dtype=jnp.int32), max(1, slots // SHARE)
    order = jnp.pad(order_by_group((~exits).astype(jnp.int32)), (0, few - 1))  # exits come first
    kept = None if pool.exited.state is None else state
    results = Exited(kept, output, memory, after.row, nan_exits, pool.age)

    def refill(carry: tuple[Array, Waiting, Exited]) -> tuple[Array, Waiting, Exited]:
        done, live, exited = carry
        slot = take_tile(order, done, few)
        exited = write_tile(exited, read_rows(results, slot), pool.done + done)
        step = done + jnp.arange(few, dtype=jnp.int32)
        drawn = pool.drawn + step
        come = jax.tree.map(
            lambda a: a.at[jnp.minimum(drawn, count - 1)].get(mode="promise_in_bounds"), source
        )
        come = come._replace(row=jnp.where(drawn < rows, come.row, count))
        to = jnp.where(step < exiting, slot, slots)
        live = jax.tree.map(lambda a, b: a.at[to].set(b, mode="drop"), live, come)
        return done + few, live, exited

    carry = jnp.int32(0), after, pool.exited
    _, live, exited = loops.while_loop(lambda carry: carry[0] < exiting, refill, carry)
    drawn = jnp.minimum(pool.drawn + exiting, rows)
    return Pool(
        slots=live,
        age=jnp.where(exits, 0, pool.age + 1),
        exited=exited,
        alive=pool.alive - exiting + drawn - pool.drawn,
        drawn=drawn,
        done=pool.done + exiting,
        executed=counted(pool.executed, slots),
    )


def _last_turns(stage: Stage, job: Job, output: PyTree, tiling: Tiling, pool: Pool) -> Pool:
    """Runs the last rows of an empty queue in compacted tiles, each at its own iteration."""
    slots, few_rows = pool.age.shape[0], pool.slots
    (plan,), places = plan_for(slots, output, [tiling])
    rows = begin(few_rows.state, output, few_rows.memory, slots, stage.steps)
    carry = all_live(rows, plan.few, places)
    order = order_by_group((few_rows.row == job.rows).astype(jnp.int32))
    account = few_rows.row, few_rows.nan_exits, pool.age - 1
    row, nan_exits, exit = jax.tree.map(
        lambda a, like: like.at[:slots].set(a[order]),
        account,
        (carry.row, carry.nan_exits, carry.exit),
    )
    source = carry.live.source.at[plan.few - 1 : plan.few - 1 + slots].set(order)
    kept = None if pool.exited.state is None else few_rows.state
    carry = with_room(carry, empty_rows(kept, plan.few - 1 + slots))._replace(
        live=carry.live._replace(source=source),
        row=row,
        nan_exits=nan_exits,
        exit=exit,
        alive=pool.alive,
        executed=pool.executed,
    )
    carry = loops.while_loop(
        lambda carry: carry.alive > 0,
        lambda carry: advance_live(stage, None, job, carry, plan),
        carry,
    )
    cut = lambda a: a[:slots]
    results = Exited(
        *by_position(carry, plan.few), cut(carry.row), cut(carry.nan_exits), cut(carry.exit)
    )
    exited = write_tile(pool.exited, results, pool.done)
    return pool._replace(exited=exited, executed=carry.executed)
