"""A bounded loop with exits through which reverse-mode gradients flow."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from dynexit.core.checks import batch_size
from dynexit.core.meshes import on_auto_axes
from dynexit.core.shapes import PyTree, Rows
from dynexit.core.stages import Depth, Stage, depth_of, stages_of
from dynexit.core.types import Criterion, Halted, Step
from dynexit.criteria.memory import first_memory
from dynexit.engine import loops
from dynexit.engine.counts import total
from dynexit.engine.executors.tiling import Tiling
from dynexit.engine.gradients.retraced import run_retraced
from dynexit.engine.recompiles import watched_jit
from dynexit.engine.rows import (
    Job,
    RowCarry,
    advance,
    advance_alone,
    begin,
    clear_exited,
    exit_depth,
    last_exit,
)
from dynexit.engine.run import checked_tile, freeze, walk

BRANCHES = 4  # of the tree of checkpoints
EXECUTORS = ("masked", "compacted")


def run_bounded(
    step: Step | Sequence[Step],
    state: Rows,
    depth: Depth = None,
    criterion: Criterion | None = None,
    executor: Literal["masked", "compacted"] = "masked",
    tile: int | Tiling | Sequence[Tiling] | None = None,
) -> Halted:
    """Runs each row until its criterion fires, as `run_until`, and is reverse-mode differentiable.

    Outputs and states have gradients; decisions and memories do not.

    "masked" runs all rows until the last row has exited, in both passes. Its checkpoints form a
    tree with 4 branches: it holds at most 4 log4(N) states and the residuals of 4 steps, and costs
    log4(N) forward passes. "compacted" runs each step, forward and backward, only on the rows that
    took it, so its time follows the mean depth. It holds the state with which every row entered
    every step (N states), and runs each step once more in the backward pass.

    Args:
      step, state, depth, criterion: as in `run_until`; no readout is deferred. For "compacted",
        differentiated arrays must be leaves of the step, as in the steps of `stacked_step`,
        `switched_step` and `tied_step`, or come from its `select`.
      executor: "masked" or "compacted"; their values and gradients are equal.
      tile: as in `run_until`, for "compacted" only.

    Returns:
      `Halted`.

    Raises:
      TypeError, ValueError: as `run_until`.

    Example:
      >>> import dynexit as dx
      >>> above = dx.criteria.gate_above(3.0, read=lambda output: output)
      >>> step = lambda p: dx.tied_step(lambda p, h: h * p, lambda p, h: h, p)
      >>> loss = lambda p: dx.run_bounded(step(p), jnp.ones(1), 9, above).output.sum()
      >>> jax.grad(loss)(jnp.float32(2.0))  # the row exits after two steps, at p ** 2
      Array(4., dtype=float32)
    """
    if not isinstance(criterion, Criterion):
        raise TypeError(f"`criterion` must be a dx.Criterion, got {type(criterion).__name__}")
    if executor not in EXECUTORS:
        raise ValueError(
            f"`executor` must be one of {', '.join(map(repr, EXECUTORS))}, got {executor!r}"
        )
    tile = checked_tile(tile, len(stages_of(step, depth)))
    depth = depth_of(step, depth)

    def run(state: PyTree, step: Any, criterion: Criterion) -> Halted:
        if executor == "compacted":
            return run_retraced(step, state, depth, criterion, tile)
        return _run_masked(step, state, depth, criterion)

    return on_auto_axes(run, state, freeze(step), criterion)


@watched_jit("run_bounded", static_argnames=("depth",))
def _run_masked(step: Any, state: PyTree, depth: Any, criterion: Criterion) -> Halted:
    stages = stages_of(step, depth)
    spaces, output = walk(stages, state)
    batch = batch_size(state)
    job = Job(criterion, last_exit(stages), batch)
    memory = first_memory(criterion, batch, output, job.last + 1)
    rows = begin(state, output, memory, batch, job.last + 1)
    states: list[PyTree] = []
    for stage, space in zip(stages, spaces, strict=True):
        if stage.steps == 1:
            rows = advance_alone(stage, job, rows, space, differentiated=True)
        else:
            rows = _tree(stage, job, clear_exited(rows) if stage.first else rows)
        states.append(rows.state)
    final = tuple(states) if isinstance(step, tuple) else states[0]
    memory = jax.tree.map(jax.lax.stop_gradient, rows.memory)
    return Halted(
        rows.output,
        rows.exit,
        exit_depth(stages, rows.exit),
        final,
        memory,
        rows.nan_exits,
        total(rows.executed),
    )


def _tree(stage: Stage, job: Job, rows: RowCarry) -> RowCarry:
    """All steps of a stage, as nested checkpointed scans of 4 iterations each.

    The backward pass of one scan holds 4 states at a time.
    """

    def one(rows: RowCarry, i: Any) -> tuple[RowCarry, None]:
        run = lambda rows: advance(stage, i, job, rows, differentiated=True)
        return loops.maybe(rows.alive.any() & (i < stage.steps), run, lambda rows: rows, rows), None

    several, covered = one, 1
    while covered < stage.steps:
        inner = several if covered == 1 else jax.checkpoint(several, prevent_cse=False)
        count = min(BRANCHES, -(-stage.steps // covered))
        starts = covered * jnp.arange(count, dtype=jnp.int32)
        several = lambda rows, i, inner=inner, starts=starts: (
            loops.scan(inner, rows, i + starts)[0],
            None,
        )
        covered *= count
    return several(rows, jnp.int32(0))[0]
