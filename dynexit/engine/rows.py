"""What the schedules share: the account kept of every row, and reading an exit."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynexit.core.checks import Stage
from dynexit.core.types import Array, Criterion, PyTree
from dynexit.engine import loops


class Job(NamedTuple):
    """What all steps of a run have in common.

    Attributes:
      criterion: when a row leaves.
      last: index of the last exit, which takes everyone.
      rows: how many rows the run has; as an index, no row.
    """

    criterion: Criterion
    last: int
    rows: Any

    def apply(
        self,
        stage: Stage,
        weights: PyTree,
        i: Any,
        state: PyTree,
        row: Array,
        present: Array,
        side: PyTree,
    ) -> tuple:
        """A step on some rows: `(state, output, side)`.

        Args:
          row: int32 `[b]`, which rows they are.
          present: bool `[b]`; the others are there to fill the shape, and the step is told that
            they are no row.
          side: None for a step without any.
        """
        if side is None:
            return (*stage.step.apply(weights, i, state), None)
        return stage.step.apply(weights, i, state, jnp.where(present, row, self.rows), side)


class Rows(NamedTuple):
    """The account of `B` rows on their way through the network.

    Attributes:
      row: int32 `[B]`, which rows of the run they are.
      state: leaves `[B, ...]`.
      output: leaves `[B, ...]`, from the last exit that the row has reached.
      exit: int32 `[B]`, index of that exit.
      memory: the criterion's memory, leaves `[B, ...]`.
      alive: bool `[B]`, whether the row goes on.
      nan_exits: int32 `[B]`, exits at which the output held a NaN.
      executed: int32 `[]`, rows x steps that ran, padding included.
      side: what is addressed by row and not by place; None where there is none.
    """

    row: Array
    state: PyTree
    output: PyTree
    exit: Array
    memory: PyTree
    alive: Array
    nan_exits: Array
    executed: Array
    side: PyTree


def begin(state: PyTree, output: PyTree, memory: PyTree, batch: int, side: PyTree = None) -> Rows:
    """Rows before the first step; `output` holds shapes."""
    return Rows(
        row=jnp.arange(batch, dtype=jnp.int32),
        state=state,
        output=zeros(output),
        exit=jnp.zeros(batch, jnp.int32),
        memory=memory,
        alive=jnp.ones(batch, bool),
        nan_exits=jnp.zeros(batch, jnp.int32),
        executed=jnp.int32(0),
        side=side,
    )


def read_exit(
    criterion: Criterion, exit: Any, last: Any, output: PyTree, memory: PyTree
) -> tuple[Array, PyTree, Array]:
    """Asks the criterion at one exit.

    Args:
      exit: int32 `[]` or `[b]`, the exit's index.
      last: bool `[]` or `[b]`, whether it is the last one, which takes everyone.
      output: leaves `[b, ...]`.
      memory: leaves `[b, ...]`.

    Returns:
      leaves: bool `[b]`; a row whose output holds a NaN stays, except at the last exit.
      memory: updated.
      nan: bool `[b]`, the output holds a NaN.

    Raises:
      TypeError, ValueError: the criterion returned something else than `(halt [b] bool, memory)`.
    """
    rows = jax.tree.leaves(output)[0].shape[0]
    result = criterion.update(exit, output, memory)
    if not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(
            f"`criterion.update` must return the pair (halt, memory), got {type(result).__name__}"
        )
    halt, new = result
    if jnp.shape(halt) != (rows,) or jnp.result_type(halt) != jnp.bool_:
        raise ValueError(
            f"`criterion.update` must return halt as bool[{rows}], one entry a row, got "
            f"{jnp.result_type(halt)}{list(jnp.shape(halt))}"
        )
    shape = lambda tree: jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a)), tree)
    if jax.tree.structure(new) != jax.tree.structure(memory) or shape(new) != shape(memory):
        raise ValueError(
            f"`criterion.update` changed the memory from {shape(memory)} to {shape(new)}; it must keep it"
        )
    nan = has_nan(output)
    return (halt & ~nan) | last, new, nan


def advance(stage: Stage, i: Any, job: Job, rows: Rows, empty: PyTree = None) -> Rows:
    """One step on the whole batch; rows that have left keep what they had.

    Args:
      stage: whose step runs.
      i: int32 `[]`, which of its steps.
      job: what all steps have in common.
      rows: the account so far.
      empty: the state of rows that have left, where the step changes the state's shape.
    """
    exit = stage.first + i
    state, output, side = job.apply(
        stage, stage.step.select(i), i, rows.state, rows.row, rows.alive, rows.side
    )
    leaves, memory, nan = read_exit(job.criterion, exit, exit == job.last, output, rows.memory)
    return Rows(
        row=rows.row,
        state=where_rows(rows.alive, state, rows.state if empty is None else empty),
        output=where_rows(rows.alive, output, rows.output),
        exit=jnp.where(rows.alive, exit, rows.exit),
        memory=where_rows(rows.alive, memory, rows.memory),
        alive=rows.alive & ~leaves,
        nan_exits=rows.nan_exits + (nan & rows.alive).astype(jnp.int32),
        executed=rows.executed + rows.alive.shape[0],
        side=side,
    )


def advance_alone(stage: Stage, job: Job, rows: Rows, space: PyTree) -> Rows:
    """`advance` for a stage of one step, which may change the state's shape to `space`; nothing
    runs once every row has left.
    """
    empty = zeros(space)
    run = lambda rows: advance(stage, jnp.int32(0), job, rows, empty)
    return loops.maybe(rows.alive.any(), run, lambda rows: rows._replace(state=empty), rows)


def forget_departed(rows: Rows) -> Rows:
    """Before a stage's first step: the state of rows that left earlier becomes zeros, for they
    never enter it.
    """
    return rows._replace(
        state=where_rows(rows.alive, rows.state, jax.tree.map(jnp.zeros_like, rows.state))
    )


def zeros(space: PyTree) -> PyTree:
    """Arrays of zeros in the given shapes."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), space)


def has_nan(output: PyTree) -> Array:
    """bool `[b]`: whether any floating-point entry of the row is NaN."""
    leaves = jax.tree.leaves(output)
    found = jnp.zeros(leaves[0].shape[0], bool)
    for leaf in leaves:
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            found |= jnp.isnan(leaf).reshape(leaf.shape[0], -1).any(axis=1)
    return found


def where_rows(mask: Array, new: PyTree, old: PyTree) -> PyTree:
    """`new` where `mask` `[b]` holds, `old` elsewhere, leaf by leaf."""
    pick = lambda a, b: jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b)
    return jax.tree.map(pick, new, old)


def last_exit(stages: tuple[Stage, ...]) -> int:
    """Index of the last exit of all."""
    return stages[-1].first + stages[-1].steps - 1


def exit_depth(stages: tuple[Stage, ...], exit: Array) -> Array:
    """Blocks executed by a row that left at `exit`."""
    table = [s.blocks_before + (k + 1) * s.step.blocks for s in stages for k in range(s.steps)]
    return jnp.asarray(table, jnp.int32)[exit]
