"""Shared by the executors: the carry of every row, and the decision at an exit."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynexit.core.shapes import Array, Bool, Int, PyTree, Rows
from dynexit.core.stages import Stage
from dynexit.core.types import Criterion, Memory
from dynexit.engine import loops
from dynexit.engine.counts import Counter, counted, no_rows


class Job(NamedTuple):
    """What all steps of a run have in common.

    Attributes:
      criterion: when a row exits.
      last: index of the last exit, at which every row exits.
      rows: number of rows of the run; as a row index it denotes a padding row.
    """

    criterion: Criterion
    last: int
    rows: Any

    def apply(
        self,
        stage: Stage,
        weights: PyTree,
        i: Int[Array, "..."],
        state: Rows,
        row: Int[Array, "B"],
        present: Bool[Array, "B"],
        side: PyTree,
    ) -> tuple[Rows, Rows, PyTree]:
        """A step on some rows: `(state, output, side)`.

        Args:
          row: int32 `[b]`, the indices of the rows.
          present: bool `[b]`, False for padding rows, whose index for the step is `self.rows`.
          side: None for a step without side arrays.
        """
        if side is None:
            return (*stage.step.apply(weights, i, state), None)
        return stage.step.apply(weights, i, state, jnp.where(present, row, self.rows), side)


class RowCarry(NamedTuple):
    """The carry of `B` rows.

    Attributes:
      row: int32 `[B]`, the indices of the rows in the run.
      state: leaves `[B, ...]`.
      output: leaves `[B, ...]`, from the last exit that the row has reached.
      exit: int32 `[B]`, index of that exit.
      memory: the `Memory` of the criterion, leaves `[B, ...]`.
      alive: bool `[B]`, whether the row has not exited.
      nan_exits: int32 `[B]`, number of exits at which the output held a NaN.
      executed: rows x steps that ran, with padding rows; a counter of `counts.py`.
      side: the arrays that are indexed by row; None if there are none.
    """

    row: Int[Array, "B"]
    state: Rows
    output: Rows
    exit: Int[Array, "B"]
    memory: Memory
    alive: Bool[Array, "B"]
    nan_exits: Int[Array, "B"]
    executed: Counter
    side: PyTree


def begin(
    state: Rows, output: PyTree, memory: Memory, batch: Any, exits: int, side: PyTree = None
) -> RowCarry:
    """The rows before the first exit; `output` holds shapes, `exits` is the number of exits."""
    return RowCarry(
        row=jnp.arange(batch, dtype=jnp.int32),
        state=state,
        output=zeros(output),
        exit=jnp.zeros(batch, jnp.int32),
        memory=memory,
        alive=jnp.ones(batch, bool),
        nan_exits=jnp.zeros(batch, jnp.int32),
        executed=no_rows(2 * batch * exits),  # tiles may run as many padding rows
        side=side,
    )


def read_exit(
    criterion: Criterion,
    exit: Int[Array, "..."],
    last: Bool[Array, "..."],
    output: Rows,
    memory: Memory,
) -> tuple[Bool[Array, "B"], Memory, Bool[Array, "B"]]:
    """Scores one exit and decides on it.

    Args:
      exit: int32 `[]` or `[b]`, the exit's index.
      last: bool `[]` or `[b]`, whether it is the last exit, at which every row exits.
      output: leaves `[b, ...]`.
      memory: leaves `[b, ...]`.

    Returns:
      exits: bool `[b]`; a row whose output holds a NaN does not exit, except at the last exit.
      memory: updated.
      nan: bool `[b]`, the output holds a NaN.

    Raises:
      TypeError, ValueError: `criterion.score` or `criterion.decide` returned an invalid result.
    """
    rows = jax.tree.leaves(output)[0].shape[0]
    with jax.named_scope("criterion"):
        result = criterion.score(exit, output, memory.score)
    score, scored = _pair(result, "score", "(score, memory)")
    check_score(score, rows)
    _check_kept("score", memory.score, scored)
    nan = has_nan(output)
    exits, decided = decide_exit(criterion, exit, last, score, memory.decide, nan)
    return exits, Memory(scored, decided), nan


def decide_exit(
    criterion: Criterion,
    exit: Int[Array, "..."],
    last: Bool[Array, "..."],
    score: Rows,
    memory: Rows,
    nan: Bool[Array, "B"],
) -> tuple[Bool[Array, "B"], Rows]:
    """The decision on a score, `(exits [b], memory)`; the arguments are those of `read_exit`.

    Raises:
      TypeError, ValueError: `criterion.decide` did not return `(exit [b] bool, memory)`.
    """
    rows = nan.shape[0]
    exits, decided = _pair(criterion.decide(exit, score, memory), "decide", "(exit, memory)")
    if jnp.shape(exits) != (rows,) or jnp.result_type(exits) != jnp.bool_:
        raise ValueError(
            f"`criterion.decide` must return exit as bool[{rows}], one entry per row, got "
            f"{jnp.result_type(exits)}{list(jnp.shape(exits))}"
        )
    _check_kept("decide", memory, decided)
    return (exits & ~nan) | last, decided


def check_score(score: PyTree, rows: Any) -> None:
    """Refuses a score with another number of rows.

    Raises:
      ValueError: a leaf has another leading axis; the error names the leaf.
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(score)[0]:
        if jnp.shape(leaf)[:1] != (rows,):
            raise ValueError(
                f"`criterion.score` must return a score{jax.tree_util.keystr(path)} with the "
                f"leading axis {rows}, one entry per row, got "
                f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
            )


def _pair(result: Any, name: str, wanted: str) -> tuple[Any, Any]:
    if not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(
            f"`criterion.{name}` must return the pair {wanted}, got {type(result).__name__}"
        )
    return result


def _check_kept(name: str, old: PyTree, new: PyTree) -> None:
    shape = lambda tree: jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a)), tree)
    if jax.tree.structure(new) != jax.tree.structure(old) or shape(new) != shape(old):
        raise ValueError(
            f"`criterion.{name}` changed its memory from {shape(old)} to {shape(new)}; it must "
            "keep structure, shapes and types"
        )


def advance(
    stage: Stage,
    i: Int[Array, ""],
    job: Job,
    rows: RowCarry,
    empty: PyTree = None,
    differentiated: bool = False,
) -> RowCarry:
    """One step on the whole batch; rows that have exited do not change.

    Args:
      stage: the stage of the step.
      i: int32 `[]`, the index of the step in its stage.
      job: the criterion and the size of the run.
      rows: the rows so far.
      empty: the state of rows that have exited, if the step changes the shape of the state.
      differentiated: whether gradients are taken; the step then runs on the state of a live row in
        place of an exited one, and the criterion reads constants.
    """
    exit = stage.first + i
    before = live_in_all(rows.alive, rows.state) if differentiated else rows.state
    state, output, side = job.apply(
        stage, stage.step.select(i), i, before, rows.row, rows.alive, rows.side
    )
    read = output, rows.memory
    read = jax.lax.stop_gradient(read) if differentiated else read
    exits, memory, nan = read_exit(job.criterion, exit, exit == job.last, *read)
    return RowCarry(
        row=rows.row,
        state=where_rows(rows.alive, state, rows.state if empty is None else empty),
        output=where_rows(rows.alive, output, rows.output),
        exit=jnp.where(rows.alive, exit, rows.exit),
        memory=where_rows(rows.alive, memory, rows.memory),
        alive=rows.alive & ~exits,
        nan_exits=rows.nan_exits + (nan & rows.alive).astype(jnp.int32),
        executed=counted(rows.executed, rows.alive.shape[0]),
        side=side,
    )


def advance_alone(
    stage: Stage, job: Job, rows: RowCarry, space: PyTree, differentiated: bool = False
) -> RowCarry:
    """`advance` for a stage of one step, which may change the state's shape to `space`.

    It does not run if every row has exited.
    """
    empty = zeros(space)
    run = lambda rows: advance(stage, jnp.int32(0), job, rows, empty, differentiated)
    return loops.maybe(rows.alive.any(), run, lambda rows: rows._replace(state=empty), rows)


def live_in_all(alive: Bool[Array, "B"], tree: Rows) -> Rows:
    """The rows `[b, ...]`, in which a live row, as a constant, replaces each exited row.

    The results of a step for exited rows are not used, but their derivatives are multiplied by
    zero. The product is NaN if a derivative is infinite. A row may exit at a state where the step
    has no derivative.
    """
    some = jnp.argmax(alive)
    filler = jax.tree.map(lambda a: jnp.broadcast_to(a[some], a.shape), tree)
    return where_rows(alive, tree, jax.lax.stop_gradient(filler))


def clear_exited(rows: RowCarry) -> RowCarry:
    """Sets the states of exited rows to zero, before a stage that these rows do not enter."""
    return rows._replace(
        state=where_rows(rows.alive, rows.state, jax.tree.map(jnp.zeros_like, rows.state))
    )


def zeros(space: PyTree) -> PyTree:
    """Arrays of zeros in the given shapes."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), space)


def has_nan(output: Rows) -> Bool[Array, "B"]:
    """Whether any floating-point entry of a row is NaN: bool `[b]`.

    If the output has an entry "mask", bool `[b, ...]`, entries where it is False are ignored.
    """
    leaves = jax.tree.leaves(output)
    found = jnp.zeros(leaves[0].shape[0], bool)
    mask = output.get("mask") if isinstance(output, dict) else None
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        nan = jnp.isnan(leaf)
        if mask is not None and mask.ndim > 1 and leaf.shape[: mask.ndim] == mask.shape:
            nan &= mask.reshape(mask.shape + (1,) * (leaf.ndim - mask.ndim))
        found |= nan.reshape(leaf.shape[0], -1).any(axis=1)
    return found


def where_rows(mask: Bool[Array, "B"], new: Rows, old: Rows) -> Rows:
    """`new` for rows where `mask` `[b]` is True, else `old`, per leaf."""
    pick = lambda a, b: jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b)
    return jax.tree.map(pick, new, old)


def last_exit(stages: tuple[Stage, ...]) -> int:
    """The index of the last exit of the network."""
    return stages[-1].first + stages[-1].steps - 1


def exit_depth(stages: tuple[Stage, ...], exit: Int[Array, "B"]) -> Int[Array, "B"]:
    """The number of blocks executed by a row that exited at `exit`."""
    if len(stages) == 1:
        return (exit + 1) * stages[0].step.blocks
    table = [s.blocks_before + (k + 1) * s.step.blocks for s in stages for k in range(s.steps)]
    return jnp.asarray(table, jnp.int32)[exit]
