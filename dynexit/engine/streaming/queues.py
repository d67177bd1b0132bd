"""Waiting rows, exited rows and their order; shared by both forms of streaming."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynexit.core.shapes import Array, Int, PyTree, Rows
from dynexit.core.stages import Stage
from dynexit.core.types import Halted, Memory
from dynexit.engine.executors.moves import empty_rows
from dynexit.engine.rows import exit_depth


class Waiting(NamedTuple):
    """Rows that have not exited, leaves `[b, ...]`.

    Attributes:
      state, memory: the state of the row, and its memory of the criterion.
      row: int32 `[b]`, the index of the row in the queue.
      nan_exits: int32 `[b]`, the number of exits at which its output held a NaN.
    """

    state: Rows
    memory: Memory
    row: Int[Array, "b"]
    nan_exits: Int[Array, "b"]


class Exited(NamedTuple):
    """Exited rows in the order of their exits.

    The leaves have space for a tile beyond the queue. `state` is None if it is not kept; `exit` is
    int32 `[b]`.
    """

    state: Rows
    output: Rows
    memory: Memory
    row: Int[Array, "b"]
    nan_exits: Int[Array, "b"]
    exit: Int[Array, "b"]


def none_exited(queue: Rows, output: PyTree, memory: Memory, rows: int, keep: bool) -> Exited:
    """Empty buffers for this number of rows, with the shapes and types of the given rows."""
    state, output, memory = empty_rows((queue if keep else None, output, memory), rows)
    return Exited(state, output, memory, *jnp.zeros((3, rows), jnp.int32))


def in_queue_order(
    exited: Exited,
    count: int,
    rows: Int[Array, ""],
    stage: Stage,
    executed: Int[Array, ""],
) -> Halted:
    """The results of the first `rows` of `count` rows in the order of the queue.

    All of these rows have exited. The other results are arbitrary.
    """
    order = jnp.arange(count, dtype=jnp.int32)
    to = jnp.where(order < rows, exited.row[:count], count)
    place = jnp.zeros(count, jnp.int32).at[to].set(order, mode="drop")
    exited = jax.tree.map(lambda a: a[place], exited)
    depth = exit_depth((stage,), exited.exit)
    return Halted(
        exited.output, exited.exit, depth, exited.state, exited.memory, exited.nan_exits, executed
    )
