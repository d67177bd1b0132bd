"""Streaming through one block again and again: rows at different depths run side by side, and one
that leaves makes room.

While the queue lasts all slots are taken. A turn runs one iteration of all of them; a row that
leaves hands its slot to the next of the queue, and the others stay where they are:

    slots   a b c d   iteration 7 2 9 4     b and d leave
    slots   a e c f   iteration 8 0 10 0    two of the queue come

Once the queue is empty the rows that are left close ranks, and run tile by tile as in
`compacted.py`: survivors are written back without a gap, the departed are appended to other
buffers, and for the fewer and fewer that are left there are smaller tiles.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynexit.core.checks import Stage
from dynexit.core.types import Array, Criterion, Halted, PyTree
from dynexit.engine import loops
from dynexit.engine.executors.compacted import (
    Gone,
    Live,
    order_by_group,
    part,
    read_rows,
    write_rows,
)
from dynexit.engine.executors.tiling import Tiling
from dynexit.engine.rows import read_exit
from dynexit.engine.streaming.cohorts import in_queue_order

# a quarter of the slots is handed over at a time, so that few rows that leave cost little and many
# few rounds
SHARE = 4


class Pool(NamedTuple):
    """Where a stream stands.

    Attributes:
      live: rows in slots; leaves `[S, ...]`. A slot without a row has the number M for one.
      age: int32 `[S]`, iterations that each has behind it.
      gone: rows that have left, in the order in which they did.
      alive, drawn, left, executed: int32 `[]`; rows in slots, rows taken from the queue, rows in
        `gone`, rows x steps so far.
    """

    live: Live
    age: Array
    gone: Gone
    alive: Array
    drawn: Array
    left: Array
    executed: Array


def run_slots(
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
    """Runs a queue through a tied step; arguments as in `run_cohorts`, but for the criterion, which
    is asked with `i` `[b]`.
    """
    count = jax.tree.leaves(queue)[0].shape[0]
    tiling = tiling.within(slots)
    plans = jnp.asarray(tiling.counts(slots))
    weights = stage.step.select(jnp.int32(0))
    source = Live(queue, memory, jnp.arange(count, dtype=jnp.int32), jnp.zeros(count, jnp.int32))
    roomy = lambda tree: jax.tree.map(
        lambda a: jnp.zeros((count + slots, *a.shape[1:]), a.dtype), tree
    )
    filled, first = jnp.zeros(count + slots, jnp.int32), jnp.arange(slots, dtype=jnp.int32)
    gone = Gone(
        roomy(queue) if keep_state else None, roomy(output), roomy(memory), filled, filled, filled
    )
    live = jax.tree.map(lambda a: a[:slots], source)._replace(
        row=jnp.where(first < rows, first, count)
    )
    taken = jnp.minimum(slots, rows)
    pool = Pool(live, jnp.zeros(slots, jnp.int32), gone, taken, taken, jnp.int32(0), jnp.int32(0))

    pool = loops.while_loop(
        lambda p: p.alive == slots,
        functools.partial(_turn, stage, weights, criterion, source, rows),
        pool,
    )
    order = order_by_group((pool.live.row == count).astype(jnp.int32))
    live, age = jax.tree.map(lambda a: a[order], (pool.live, pool.age))

    def last_turns(pool: Pool) -> Pool:
        carry = jnp.int32(0), pool._replace(alive=jnp.int32(0))
        for k, size in enumerate(tiling.sizes):
            run = functools.partial(_run, stage, weights, criterion, pool.alive, size)
            carry = loops.repeat(plans[pool.alive, k], run, carry)
        return carry[1]

    pool = loops.while_loop(lambda p: p.alive > 0, last_turns, pool._replace(live=live, age=age))
    return in_queue_order(pool.gone, count, rows, stage, pool.executed)


def _turn(
    stage: Stage, weights: PyTree, criterion: Criterion, source: Live, rows: Array, pool: Pool
) -> Pool:
    """One iteration of all slots, in each of which there is a row, and the next of the queue in the
    place of those that leave.
    """
    after, output, leaves = _iterate(stage, weights, criterion, pool.live, pool.age)
    leaving, slots, count = leaves.sum(dtype=jnp.int32), leaves.shape[0], source.row.shape[0]
    few = max(1, slots // SHARE)
    leavers = jnp.pad(
        order_by_group((~leaves).astype(jnp.int32)), (0, few - 1)
    )  # first, the others behind them

    def hand_over(carry: tuple[Array, Live, Gone]) -> tuple[Array, Live, Gone]:
        done, live, gone = carry
        next = done + jnp.arange(few, dtype=jnp.int32)
        slot, drawn = leavers[next], pool.drawn + next
        gone = write_rows(gone, _departed(gone, live, output, pool.age), slot, pool.left + done)
        come = jax.tree.map(
            lambda a: a.at[jnp.minimum(drawn, count - 1)].get(mode="promise_in_bounds"), source
        )
        come = come._replace(row=jnp.where(drawn < rows, come.row, count))
        to = jnp.where(next < leaving, slot, slots)
        return done + few, jax.tree.map(lambda a, b: a.at[to].set(b, mode="drop"), live, come), gone

    carry = jnp.int32(0), after, pool.gone
    _, live, gone = loops.repeat((leaving + few - 1) // few, hand_over, carry)
    drawn = jnp.minimum(pool.drawn + leaving, rows)
    alive, age = pool.alive - leaving + drawn - pool.drawn, jnp.where(leaves, 0, pool.age + 1)
    return Pool(live, age, gone, alive, drawn, pool.left + leaving, pool.executed + leaves.shape[0])


def _run(
    stage: Stage,
    weights: PyTree,
    criterion: Criterion,
    total: Array,
    size: int,
    carry: tuple[Array, Pool],
) -> tuple[Array, Pool]:
    """One iteration of the next `size` slots; `pool.alive` counts the survivors so far."""
    begin, pool = carry
    place = begin + jnp.arange(size, dtype=jnp.int32)
    before, age = read_rows((pool.live, pool.age), place)
    after, output, leaves = _iterate(stage, weights, criterion, before, age)
    parting = part(leaves, place < total)
    live, ages = write_rows((pool.live, pool.age), (after, age + 1), parting.stay, pool.alive)
    return begin + size, pool._replace(
        live=live,
        age=ages,
        gone=write_rows(
            pool.gone, _departed(pool.gone, after, output, age), parting.leave, pool.left
        ),
        alive=pool.alive + parting.staying,
        left=pool.left + parting.leaving,
        executed=pool.executed + size,
    )


def _iterate(
    stage: Stage, weights: PyTree, criterion: Criterion, live: Live, age: Array
) -> tuple[Live, PyTree, Array]:
    """The rows after one iteration, its output, and which of them leave."""
    state, output = stage.step.apply(weights, age, live.state)
    leaves, memory, nan = read_exit(criterion, age, age == stage.steps - 1, output, live.memory)
    return Live(state, memory, live.row, live.nan_exits + nan.astype(jnp.int32)), output, leaves


def _departed(gone: Gone, live: Live, output: PyTree, age: Array) -> Gone:
    """Rows as they leave; with their states where these are kept."""
    return Gone(
        None if gone.state is None else live.state,
        output,
        live.memory,
        live.row,
        live.nan_exits,
        age,
    )
