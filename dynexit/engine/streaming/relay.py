"""Relay: each row executes a sequence of runs, and begins the next in the turn in which it exits.

A decoder runs in this way: every row is at its own token and its own iteration. A turn is one
iteration of all rows. So the number of turns follows the mean depth of the runs, and not the
largest depth of each token.

    turn    1      2      3      4      5      6
    row 0   a a1   a a2   b b1   c c1   c c2   c c3
    row 1   p p1   q q1   q q2   q q3   q q4   r r1
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from dynexit.core.checks import describe, positive_integer
from dynexit.core.shapes import Array, Bool, Int, PyTree, Rows
from dynexit.core.types import Criterion, Memory
from dynexit.criteria.memory import first_memory
from dynexit.engine.executors.tiling import Tiling
from dynexit.engine.rows import read_exit

Finish: TypeAlias = Callable[
    [PyTree, Rows, Int[Array, "b"], Bool[Array, "b"], Int[Array, "b"]],
    tuple[PyTree, Bool[Array, "b"]],
]


class Relayed(NamedTuple):
    """The result of `run_relay`.

    Attributes:
      state: the final state.
      nan_exits: int32 `[B]`, the number of iterations at which the output of the row held a NaN. A
        row does not exit there, except at the last iteration of a run.
      turns: int32 `[]`, the number of iterations of all rows.
    """

    state: PyTree
    nan_exits: Int[Array, "B"]
    turns: Int[Array, ""]


class Turn(NamedTuple):
    """The carry of the loop over turns.

    `age` is the number of iterations of the current run of each row, `over` whether it is finished,
    and `memory` that of the criterion.
    """

    age: Int[Array, "B"]
    over: Bool[Array, "B"]
    memory: Memory
    state: PyTree
    nan_exits: Int[Array, "B"]
    turns: Int[Array, ""]


def run_relay(
    step: Callable[[Int[Array, "B"], PyTree], tuple[PyTree, Rows]],
    finish: Finish,
    state: PyTree,
    depth: int,
    criterion: Criterion,
    over: Bool[Array, "B"],
    tiling: Tiling,
) -> Relayed:
    """Iterates rows that each begin a new run when they exit, until all rows are finished.

    It runs on one device, and not in `jax.shard_map`.

    Args:
      step: `step(i, state) -> (state, output)`, one iteration of every row at iterations `i`, int32
        `[B]`; leaves of the output are `[B, ...]`, those of the state have any shape. It also runs
        on finished rows, whose results are not used.
      finish: `finish(state, output, of, valid, exit_depth) -> (state, over)` for the rows `of`
        `[b]` that exit, after `exit_depth` `[b]` iterations and with the output `[b, ...]` of the
        last one. It stores their results and begins their next runs; `over` `[b]` is True for a
        row without a further run. Rows that are not `valid` `[b]` are padding rows; nothing of
        theirs may change. Where b is B, the rows are in their own order.
      state: the first state of `step` and `finish`.
      depth: maximal number of iterations of one run.
      criterion: when a row exits; its memory is reset for every run.
      over: bool `[B]`, rows that are finished from the start.
      tiling: tiles in which `finish` runs.

    Returns:
      `Relayed`.

    Raises:
      TypeError, ValueError: `depth` is below 1, `over` is not bool `[B]` or has no rows, or the
        criterion is for another number of exits or returns invalid results.

    Example:
      >>> import dynexit as dx
      >>> # counts up to 3, twice and once
      >>> add = lambda i, state: ({**state, "sum": state["sum"] + 1.0}, state["sum"])
      >>> def again(state, output, of, valid, depth):
      ...     to = jnp.where(valid, of, 2)
      ...     left = state["left"].at[to].add(-1, mode="drop")
      ...     return {"sum": state["sum"].at[to].set(0.0, mode="drop"), "left": left}, left[of] == 0
      >>> three = dx.criteria.gate_above(1.5, read=lambda output: output)
      >>> begun = {"sum": jnp.zeros(2), "left": jnp.array([2, 1])}
      >>> tiling = dx.Tiling((2, 1), (2.0, 1.5))
      >>> run_relay(add, again, begun, 9, three, jnp.zeros(2, bool), tiling).turns
      Array(6, dtype=int32)
    """
    positive_integer(depth, "depth")
    if over.ndim != 1 or not over.size or over.dtype != bool:
        raise ValueError(f"`over` must be bool [B] of at least one row, got {describe(over)}")
    rows = over.size
    tiling = tiling.within(rows)
    plans = jnp.asarray(tiling.counts(rows))
    zero = jnp.zeros(rows, jnp.int32)
    first = first_memory(criterion, rows, jax.eval_shape(step, zero, state)[1], depth)

    def turn(before: Turn) -> Turn:
        age, over, memory, state, nan_exits, turns = before
        state, output = step(age, state)
        exits, memory, nan = read_exit(criterion, age, age == depth - 1, output, memory)
        exits, nan_exits = exits & ~over, nan_exits + (nan & ~over).astype(jnp.int32)
        total, order = exits.sum(dtype=jnp.int32), jnp.argsort(~exits, stable=True)

        def ready(size: int, carry: Any) -> Any:
            start, over, memory, state = carry
            if size == rows:  # nothing is moved
                of, valid = jnp.arange(rows, dtype=jnp.int32), exits
            else:
                place = start + jnp.arange(size, dtype=jnp.int32)
                of, valid = order[jnp.minimum(place, rows - 1)], place < total
            state, last = finish(
                state, jax.tree.map(lambda a: a[of], output), of, valid, age[of] + 1
            )
            to = jnp.where(valid, of, rows)
            over = over.at[to].set(last, mode="drop")
            return (
                start + size,
                over,
                jax.tree.map(lambda a, new: a.at[to].set(new[of], mode="drop"), memory, first),
                state,
            )

        carry = jnp.int32(0), over, memory, state
        for k, size in enumerate(tiling.sizes):
            carry = jax.lax.fori_loop(
                0, plans[total, k], lambda _, carry, size=size: ready(size, carry), carry
            )
        _, over, memory, state = carry
        return Turn(jnp.where(exits, 0, age + 1), over, memory, state, nan_exits, turns + 1)

    begun = Turn(zero, over, first, state, zero, jnp.int32(0))
    ended = jax.lax.while_loop(lambda turn: ~turn.over.all(), turn, begun)
    return Relayed(ended.state, ended.nan_exits, ended.turns)
