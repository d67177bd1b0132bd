"""Streaming through one block again and again: rows at different depths run side by side, and one that leaves makes room.

Live rows stand in slots 0, 1, ..., each at an iteration of its own. A turn first fills the free slots from the queue, then runs one
iteration of all live rows tile by tile, as in `compacted.py`: survivors close ranks, the departed are appended to other buffers.

    slots   a b c d   iteration 7 2 9 4     b and d leave
    slots   a c . .                         closed ranks
    slots   a c e f   iteration 8 10 0 0    filled from the queue

As long as the queue lasts every turn is one full tile. At its end fewer and fewer rows are left, for which there are smaller tiles.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynexit.core.checks import Stage
from dynexit.core.types import Array, Criterion, Halted, PyTree
from dynexit.exits import loops
from dynexit.exits.cohorts import in_queue_order
from dynexit.exits.compacted import Gone, Live, part, read_rows, write_rows
from dynexit.exits.rows import read_exit
from dynexit.exits.tiling import Tiling


class Pool(NamedTuple):
    """Where a stream stands.

    Attributes:
      live: rows in slots 0..alive-1; leaves `[2 S, ...]`, so that the queue's next S rows may be written behind them.
      age: int32 `[2 S]`, iterations that each has behind it.
      gone: rows that have left, in the order in which they did.
      alive, drawn, left, executed: int32 `[]`; rows in slots, rows taken from the queue, rows in `gone`, rows x steps so far.
    """

    live: Live
    age: Array
    gone: Gone
    alive: Array
    drawn: Array
    left: Array
    executed: Array


def run_slots(
    stage: Stage, queue: PyTree, rows: Array, criterion: Criterion, memory: PyTree, output: PyTree, slots: int, tiling: Tiling
) -> Halted:
    """Runs a queue through a tied step; arguments as in `run_cohorts`, but for the criterion, which is asked with `i` `[b]`."""
    count = jax.tree.leaves(queue)[0].shape[0]
    tiling = tiling.within(slots)
    plans = jnp.asarray(tiling.counts(slots))
    weights = stage.step.select(jnp.int32(0))
    empty = lambda length, tree: jax.tree.map(lambda a: jnp.zeros((length, *a.shape[1:]), a.dtype), tree)
    source = Live(queue, memory, jnp.arange(count, dtype=jnp.int32), jnp.zeros(count, jnp.int32))
    roomy, filled, none = functools.partial(empty, count + slots), jnp.zeros(count + slots, jnp.int32), jnp.int32(0)
    gone = Gone(roomy(queue), roomy(output), roomy(memory), filled, filled, filled)
    pool = Pool(empty(2 * slots, source), jnp.zeros(2 * slots, jnp.int32), gone, none, none, none, none)

    def turn(pool: Pool) -> Pool:
        pool = _refill(source, rows, slots, pool)
        carry = jnp.int32(0), pool._replace(alive=jnp.int32(0))
        for k, size in enumerate(tiling.sizes):
            run = functools.partial(_run, stage, weights, criterion, pool.alive, size)
            carry = loops.repeat(plans[pool.alive, k], run, carry)
        return carry[1]

    pool = loops.while_loop(lambda pool: (pool.alive > 0) | (pool.drawn < rows), turn, pool)
    return in_queue_order(pool.gone, count, rows, stage, pool.executed)


def _refill(source: Live, rows: Array, slots: int, pool: Pool) -> Pool:
    """Free slots filled from the queue."""
    steps = jnp.arange(slots, dtype=jnp.int32)
    index = jnp.minimum(pool.drawn + steps, source.row.shape[0] - 1)
    come = jax.tree.map(lambda a: a.at[index].get(mode="promise_in_bounds", indices_are_sorted=True), source)
    taken = jnp.minimum(slots - pool.alive, rows - pool.drawn)
    live, age = write_rows((pool.live, pool.age), (come, jnp.zeros_like(steps)), steps, pool.alive)
    return pool._replace(live=live, age=age, alive=pool.alive + taken, drawn=pool.drawn + taken)


def _run(
    stage: Stage, weights: PyTree, criterion: Criterion, total: Array, size: int, carry: tuple[Array, Pool]
) -> tuple[Array, Pool]:
    """One iteration of the next `size` slots; `pool.alive` counts the survivors so far."""
    begin, pool = carry
    place = begin + jnp.arange(size, dtype=jnp.int32)
    tile, age = read_rows((pool.live, pool.age), place)
    state, output = stage.step.apply(weights, age, tile.state)
    leaves, memory, nan = read_exit(criterion, age, age == stage.steps - 1, output, tile.memory)
    occupied = place < total
    parting = part(leaves, occupied)
    after = Live(state, memory, tile.row, tile.nan_exits + nan.astype(jnp.int32))
    departed = Gone(state, output, memory, after.row, after.nan_exits, age)
    live, age = write_rows((pool.live, pool.age), (after, age + 1), parting.stay, pool.alive)
    return begin + size, pool._replace(
        live=live,
        age=age,
        gone=write_rows(pool.gone, departed, parting.leave, pool.left),
        alive=pool.alive + parting.staying,
        left=pool.left + parting.leaving,
        executed=pool.executed + size,
    )
