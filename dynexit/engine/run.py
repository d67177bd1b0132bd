"""`run_all`, `run_full` and `run_until`: every exit, the last exit, or one exit per row."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from dynexit.core.checks import batch_size, positive_integer, same_for_all, shapes
from dynexit.core.meshes import on_auto_axes
from dynexit.core.shapes import ExitRows, PyTree, Rows
from dynexit.core.stacking import refuse_other_leaves
from dynexit.core.stages import Depth, Stage, depth_of, stages_of
from dynexit.core.step_checks import check_outputs_agree, check_step
from dynexit.core.types import Criterion, Halted, Step
from dynexit.criteria.memory import first_memory
from dynexit.engine import loops
from dynexit.engine.counts import total
from dynexit.engine.deferred import completed, partition
from dynexit.engine.executors.compacted import run_compacted
from dynexit.engine.executors.masked import run_masked
from dynexit.engine.executors.per_row import run_per_row
from dynexit.engine.executors.tiling import Tiling, default_tiling
from dynexit.engine.recompiles import watched_jit
from dynexit.engine.rows import Job, begin, exit_depth, last_exit

Executor: TypeAlias = Literal["auto", "compacted", "masked", "per_row"]
# a scan of at most this many steps is unrolled: gradients of convolutions are slow in a loop on CPU
UNROLLED = 4
EXECUTORS = ("auto", "compacted", "masked", "per_row")


def run_all(step: Step | Sequence[Step], state: Rows, depth: Depth = None) -> ExitRows:
    """Runs every block and returns the output of every exit; reverse-mode differentiable.

    The blocks run in a `lax.scan`. As every function that runs a step, `run_all` is compiled. Equal
    functions and shapes compile once.

    Args:
      step: a `Step`, or one per stage if the state changes its shape.
      state: leaves `[B, ...]`.
      depth: number of blocks; one number, or one per stage; None for `Step.depth`.

    Returns:
      The outputs, leaves `[E, B, ...]`.

    Raises:
      TypeError, ValueError: the step is invalid, the batch is empty or the depth is 0; the error
        names the argument.

    Example:
      >>> import dynexit as dx
      >>> step = dx.stacked_step(lambda p, h: h * p, lambda p, h: h, jnp.full(3, 2.0))
      >>> dx.run_all(step, jnp.ones(1))[:, 0]
      Array([2., 4., 8.], dtype=float32)
    """
    stages_of(step, depth)
    batch_size(state)
    depth = depth_of(step, depth)
    run = lambda state, step: _run_all(step, state, depth)
    return on_auto_axes(run, state, freeze(step), leading=1)


@watched_jit("run_all", static_argnames=("depth",), inline=True)
def _run_all(step: Any, state: PyTree, depth: Any) -> PyTree:
    stages = stages_of(step, depth)
    walk(stages, state)
    outputs: list[PyTree] = []
    for stage in stages:
        state, read = _scan(stage, state, stage.steps)
        outputs.append(read)
    return (
        outputs[0] if len(outputs) == 1 else jax.tree.map(lambda *a: jnp.concatenate(a), *outputs)
    )


def run_full(step: Step | Sequence[Step], state: Rows, depth: Depth = None) -> tuple[Rows, Rows]:
    """Runs every block and reads the last exit only: the plain network without early exits.

    It is the reference for the time that exits save.

    Args:
      step, state, depth: as in `run_all`.

    Returns:
      The state after the last block and the output of the last exit, leaves `[B, ...]`.
    """
    stages_of(step, depth)
    batch_size(state)
    depth = depth_of(step, depth)
    run = lambda state, step: _run_full(step, state, depth)
    return on_auto_axes(run, state, freeze(step))


@watched_jit("run_full", static_argnames=("depth",), inline=True)
def _run_full(step: Any, state: PyTree, depth: Any) -> tuple[PyTree, ...]:
    stages = stages_of(step, depth)
    walk(stages, state)
    for k, stage in enumerate(stages):
        before = stage.steps - (k == len(stages) - 1)
        if before:
            state, _ = _scan(stage, state, before, read=False)
    i = jnp.int32(stages[-1].steps - 1)
    return stages[-1].step.apply(stages[-1].step.select(i), i, state)


def run_until(
    step: Step | Sequence[Step],
    state: Rows,
    depth: Depth = None,
    criterion: Criterion | None = None,
    executor: Executor = "auto",
    tile: int | Tiling | Sequence[Tiling] | None = None,
    keep_state: bool = True,
    side: PyTree = None,
) -> Halted:
    """Runs each row until its criterion fires, in one compiled program.

    The result of a row is the output of `run_all` at the first exit where the criterion fires. At
    the last exit every row exits. All executors give the same outputs, depths and memories. The
    function is not reverse-mode differentiable (see `run_bounded`).

    Args:
      step: a `Step`, or one per stage if the state changes its shape; rows must be independent of
        each other.
      state: leaves `[B, ...]`.
      depth: maximal number of blocks; one number, or one per stage; None for `Step.depth`.
      criterion: when a row exits; its thresholds are traced, so new values do not recompile.
      executor: "compacted" runs blocks on tiles of live rows, "masked" runs all rows until the last
        row has exited, and "per_row" runs one row at a time. "auto" is "masked" for one row and
        "compacted" otherwise.
      tile: rows in the largest tile of the compacted executor; or a `Tiling`, or one per stage
        (`dx.tune` measures them); None for sizes that suit most CPUs.
      keep_state: whether to return the state with which each row exited. False saves a second
        buffer of the state and the writes to it, unless a deferred readout needs the states.
      side: arrays of any shape that the steps read and write by row and that are not moved with the
        rows, such as a KV cache. With it every step is `apply(weights, i, state, rows, side) ->
        (state, output, side)`. `rows`, int32 `[b]`, holds the indices of the rows in the batch, and
        B for a padding row. For a padding row `side.at[rows].set(...)` writes nothing, and
        `side[rows]` with JAX's default mode "fill" gives NaN to a result that is not used. A step
        may change the entries of its own rows only.

    Returns:
      `Halted`; `state` is None without `keep_state`, and `side` is that of the last step. The
      entries of a `deferred_readout` are computed at the end if the criterion does not depend on
      them.

    Raises:
      TypeError, ValueError: the step or criterion is invalid, the criterion has thresholds for
        another number of exits, the batch is empty, the depth is 0, the executor is unknown or the
        tile is below 1; the error names the argument.

    Example:
      >>> import dynexit as dx
      >>> step = dx.stacked_step(lambda p, h: h + p, lambda p, h: h, jnp.ones(3))
      >>> large = dx.criteria.gate_above(2.5, read=lambda output: output)
      >>> dx.run_until(step, jnp.array([0.0, 1.0, 2.0]), criterion=large).exit_depth
      Array([3, 2, 1], dtype=int32)
    """
    if executor not in EXECUTORS:
        raise ValueError(
            f"`executor` must be one of {', '.join(map(repr, EXECUTORS))}, got {executor!r}"
        )
    if not isinstance(criterion, Criterion):
        raise TypeError(f"`criterion` must be a dx.Criterion, got {type(criterion).__name__}")
    stages = stages_of(step, depth)
    batch_size(state)
    refuse_other_leaves(criterion, "criterion")
    depth, tile = depth_of(step, depth), checked_tile(tile, len(stages))

    def run(state: PyTree, step: Any, criterion: Criterion, side: PyTree) -> Halted:
        return _run_until(step, state, depth, criterion, executor, tile, keep_state, side)

    return on_auto_axes(run, state, freeze(step), criterion, side)


@watched_jit("run_until", static_argnames=("depth", "executor", "tile", "keep_state"))
def _run_until(
    step: Any,
    state: PyTree,
    depth: Any,
    criterion: Criterion,
    executor: Executor,
    tile: Any,
    keep_state: bool,
    side: PyTree,
) -> Halted:
    step, criterion, read = partition(step, depth, state, criterion, side)
    stages = stages_of(step, depth)
    spaces, output = walk(stages, state, side)
    batch = batch_size(state)
    job = Job(criterion, last_exit(stages), batch)
    memory = first_memory(criterion, batch, output, job.last + 1)
    rows = begin(state, output, memory, batch, job.last + 1, side)
    if executor == "masked" or (executor == "auto" and batch == 1):
        rows, states = run_masked(stages, job, rows, spaces)
    elif executor == "per_row":
        rows, states = run_per_row(stages, job, rows, spaces)
    else:
        if not isinstance(tile, tuple):
            entering = zip(stages, (state, *spaces[:-1]), strict=True)
            tile = tuple(default_tiling(space, batch, tile, s.step) for s, space in entering)
        rows, states = run_compacted(
            stages, job, rows, spaces, tile, keep_state or read is not None
        )
    left_with = states if isinstance(step, tuple) or not states else states[0]
    output, nan_exits = completed(read, rows.output, rows.nan_exits, left_with)
    final = left_with if keep_state else None
    depths = exit_depth(stages, rows.exit)
    halted = Halted(
        output, rows.exit, depths, final, rows.memory, nan_exits, total(rows.executed), rows.side
    )
    return loops.forward_only(halted, "run_until")


def checked_tile(tile: Any, stages: int) -> Any:
    """`tile` as None, an integer, or a tuple of one tiling per stage."""
    if tile is None:
        return None
    if not isinstance(tile, (Tiling, tuple, list)):
        return positive_integer(tile, "tile")
    tilings = (tile,) * stages if isinstance(tile, Tiling) else tuple(tile)
    if len(tilings) != stages or not all(isinstance(t, Tiling) for t in tilings):
        raise ValueError(
            f"`tile` must be an integer, a dx.Tiling, or one for each of the {stages} stages, "
            f"got {tile!r}"
        )
    return tilings


def freeze(x: Any) -> Any:
    """Lists as tuples, since JAX distinguishes the two."""
    return tuple(x) if isinstance(x, (tuple, list)) else x


def walk(
    stages: tuple[Stage, ...], state: PyTree, side: PyTree = None
) -> tuple[tuple[PyTree, ...], PyTree]:
    """Checks the stages; returns the shapes of the state after each stage, and of the output."""
    spaces: list[PyTree] = []
    outputs: list[PyTree] = []
    space = shapes(state)
    for k, stage in enumerate(stages):
        space, output = check_step(stage, space, f"step[{k}]" if len(stages) > 1 else "step", side)
        spaces.append(space)
        outputs.append(output)
    check_outputs_agree(outputs)
    return tuple(spaces), outputs[0]


def _scan(stage: Stage, state: PyTree, steps: int, read: bool = True) -> tuple[PyTree, PyTree]:
    """Runs `steps` steps with `lax.scan`: the state, and the outputs `[steps, B, ...]` or None."""
    weights = stacked_weights(stage.step, stage.steps)
    tied = weights is None
    constant = stage.step.select(jnp.int32(0)) if tied else None

    def body(state: PyTree, x: Any) -> tuple[PyTree, PyTree]:
        i, w = x
        state, output = stage.step.apply(constant if tied else w, i, state)
        return state, output if read else None

    if stage.steps == 1:  # may change the state's shape
        i = jnp.int32(0)
        state, output = stage.step.apply(stage.step.select(i), i, state)
        return state, jax.tree.map(lambda a: a[None], output) if read else None
    first = jax.tree.map(lambda a: a[:steps], weights)
    return lax.scan(
        body, state, (jnp.arange(steps, dtype=jnp.int32), first), unroll=steps <= UNROLLED
    )


def stacked_weights(step: Step, steps: int) -> PyTree | None:
    """The weights of all blocks on a leading axis `[steps]`, or None for tied weights.

    The backward pass of a scan over stacked weights computes one block's gradient per step. A
    dynamic index inside the scan would add a gradient of all blocks per step.
    """
    indices = jnp.arange(steps, dtype=jnp.int32)
    if same_for_all(lambda select, i: select(i), step.select, indices):
        return None
    return jax.vmap(step.select)(indices)
