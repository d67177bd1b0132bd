"""Rows that go through one run after another: a row that halts begins its next run in the same turn
and waits for no other.

This is how a decoder writes: every row is at a token and at an iteration of its own. A turn is one
iteration of all rows, so the turns follow the mean depth of the runs and not the largest of each
round.

    turn    1      2      3      4      5      6
    row 0   a a1   a a2   b b1   c c1   c c2   c c3
    row 1   p p1   q q1   q q2   q q3   q q4   r r1
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynexit.core.checks import describe, positive_integer
from dynexit.core.types import Array, Criterion, PyTree
from dynexit.criteria.memory import first_memory
from dynexit.engine.executors.tiling import Tiling
from dynexit.engine.rows import read_exit


class Relayed(NamedTuple):
    """What a relay returns.

    Attributes:
      state: as step and finish left it.
      nan_exits: int32 `[B]`, iterations at which the row's output held a NaN; there it does not
        halt, unless it is the last.
      turns: int32 `[]`, iterations that all rows ran.
    """

    state: PyTree
    nan_exits: Array
    turns: Array


class Standing(NamedTuple):
    """Between turns: iterations each row has behind it, whether it is over, and the criterion's
    memory.
    """

    age: Array
    over: Array
    memory: PyTree
    state: PyTree
    nan_exits: Array
    turns: Array


def run_relay(
    step: Callable[[Array, PyTree], tuple[PyTree, PyTree]],
    finish: Callable[[PyTree, PyTree, Array, Array, Array], tuple[PyTree, Array]],
    state: PyTree,
    depth: int,
    criterion: Criterion,
    over: Array,
    tiling: Tiling,
) -> Relayed:
    """Iterates all rows, each of which begins anew when it halts, until all are over; on one
    device, not in `jax.shard_map`.

    Args:
      step: `step(i, state) -> (state, output)`, one iteration of every row at iterations `i`, int32
        `[B]`; leaves of the output are `[B, ...]`, those of the state whatever they like. It runs
        on rows that are over, too, and must bear that.
      finish: `finish(state, output, of, valid, exit_depth) -> (state, over)` for the rows `of`
        `[b]` that have halted, after `exit_depth` `[b]` iterations and with the output `[b, ...]`
        of the last: takes what they came to and begins their next run; `over` `[b]` says which have
        none. Rows that are not `valid` `[b]` fill a tile up, and nothing of theirs may change.
      state: what step and finish hand on.
      depth: iterations at most, of one run.
      criterion: when a row halts; its memory begins anew with every run.
      over: bool `[B]`, rows that have no run to begin with.
      tiling: tiles in which `finish` runs.

    Returns:
      `Relayed`.

    Raises:
      TypeError, ValueError: `depth` below 1, `over` not bool `[B]` or of no row, a criterion for
        another number of exits or of wrong results.

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
      >>> run_relay(add, again, begun, 9, three, jnp.zeros(2, bool), dx.Tiling((2, 1), (2.0, 1.5))).turns
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

    def turn(standing: Standing) -> Standing:
        age, over, memory, state, nan_exits, turns = standing
        state, output = step(age, state)
        leaves, memory, nan = read_exit(criterion, age, age == depth - 1, output, memory)
        leaves, nan_exits = leaves & ~over, nan_exits + (nan & ~over).astype(jnp.int32)
        total, order = leaves.sum(dtype=jnp.int32), jnp.argsort(~leaves, stable=True)

        def ready(size: int, carry: Any) -> Any:
            start, over, memory, state = carry
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
        return Standing(jnp.where(leaves, 0, age + 1), over, memory, state, nan_exits, turns + 1)

    begun = Standing(zero, over, first, state, zero, jnp.int32(0))
    ended = jax.lax.while_loop(lambda standing: ~standing.over.all(), turn, begun)
    return Relayed(ended.state, ended.nan_exits, ended.turns)
