"""What both forms of streaming share: rows that wait, rows that have exited, and their order."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynexit.core.checks import Stage
from dynexit.core.types import Array, Halted, PyTree
from dynexit.engine.executors.moves import empty_rows
from dynexit.engine.rows import exit_depth


class Waiting(NamedTuple):
    """Rows that go on; leaves `[b, ...]`.

    Attributes:
      state, memory: of the row, and of the criterion.
      row: int32 `[b]`, its number in the queue.
      nan_exits: int32 `[b]`, exits at which its output held a NaN.
    """

    state: PyTree
    memory: PyTree
    row: Array
    nan_exits: Array


class Exited(NamedTuple):
    """Rows that have exited, in the order in which they did; leaves have room for a tile beyond the
    queue. State is None where it is not kept, exit is int32 `[b]`.
    """

    state: PyTree
    output: PyTree
    memory: PyTree
    row: Array
    nan_exits: Array
    exit: Array


def none_exited(queue: PyTree, output: PyTree, memory: PyTree, rows: int, keep: bool) -> Exited:
    """Room for so many rows like those given."""
    state, output, memory = empty_rows((queue if keep else None, output, memory), rows)
    return Exited(state, output, memory, *jnp.zeros((3, rows), jnp.int32))


def in_queue_order(
    exited: Exited, count: int, rows: Array, stage: Stage, executed: Array
) -> Halted:
    """The first `rows` of a queue of `count`, all of which have exited, put back into its order;
    other results are arbitrary.
    """
    order = jnp.arange(count, dtype=jnp.int32)
    to = jnp.where(order < rows, exited.row[:count], count)
    place = jnp.zeros(count, jnp.int32).at[to].set(order, mode="drop")
    exited = jax.tree.map(lambda a: a[place], exited)
    depth = exit_depth((stage,), exited.exit)
    return Halted(
        exited.output, exited.exit, depth, exited.state, exited.memory, exited.nan_exits, executed
    )
