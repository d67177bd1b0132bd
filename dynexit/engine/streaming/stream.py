"""Streaming: a queue of rows, from which the next row takes the slot of a row that exits.

If all iterations share their weights, rows at different depths run side by side in slots that are
refilled from the queue (`slots.py`). If each block has its own weights, rows that wait for the same
block are gathered into tiles (`cohorts.py`).
"""

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.checks import batch_size, positive_integer, same_for_all, shapes
from dynexit.core.meshes import on_auto_axes
from dynexit.core.shapes import Array, Int, PyTree, Rows
from dynexit.core.stages import depth_of, stages_of
from dynexit.core.step_checks import check_step
from dynexit.core.types import Criterion, Halted, Step
from dynexit.criteria.memory import first_memory
from dynexit.engine import loops
from dynexit.engine.deferred import completed, partition
from dynexit.engine.executors.tiling import default_tiling
from dynexit.engine.recompiles import watched_jit
from dynexit.engine.streaming.cohorts import run_cohorts
from dynexit.engine.streaming.slots import run_slots


def run_stream(
    step: Step,
    queue: Rows,
    depth: int | None = None,
    criterion: Criterion | None = None,
    slots: int | None = None,
    keep_state: bool = True,
) -> Halted:
    """Runs a queue of rows, `slots` at a time; the next row takes the slot of a row that exits.

    The step is tied if neither its weights nor its computation depend on `i`, which is determined
    while tracing. A tied step runs on rows that are each at their own iteration; step and criterion
    receive `i` as int32 `[b]`. Any other step runs block by block on the rows that wait for the
    block; the criterion receives a scalar `i`.

    Args:
      step: one step that keeps the shape of the state.
      queue: leaves `[M, ...]`.
      depth: maximal number of blocks; None for `Step.depth`.
      criterion: when a row exits.
      slots: S, the number of rows that run together, at most M; None for the largest tile that
        `run_until` would choose.
      keep_state: as in `run_until`.

    Returns:
      `Halted` in the order of the queue, leaves `[M, ...]`; `state` is None without `keep_state`.
      `rows_executed` counts the rows of all tiles that ran.

    Raises:
      TypeError, ValueError: the step is a sequence of stages, the step or criterion is invalid, the
        queue is empty, the depth is 0 or `slots` is below 1.

    Example:
      >>> import dynexit as dx
      >>> double = dx.tied_step(lambda p, h: h * p, lambda p, h: h, jnp.float32(2.0))
      >>> big = dx.criteria.gate_above(8.0, read=lambda output: output)
      >>> queue = jnp.array([1.0, 5.0, 3.0])
      >>> dx.run_stream(double, queue, depth=9, criterion=big, slots=2).exit_depth
      Array([4, 1, 2], dtype=int32)
    """
    slots = checked_slots(step, depth, criterion, slots)
    rows = jax.device_put(np.int32(batch_size(queue, "queue")))
    return streamed(step, queue, rows, depth_of(step, depth), criterion, slots, keep_state)


def streamed(
    step: Step,
    queue: Rows,
    rows: Int[Array, ""],
    depth: int,
    criterion: Criterion | None,
    slots: int | None,
    keep_state: bool,
) -> Halted:
    """`stream`, on a mesh of any kind."""

    def run(queue: PyTree, rows: Array, step: Step, criterion: Criterion) -> Halted:
        return stream(step, queue, rows, depth, criterion, slots, keep_state)

    return on_auto_axes(run, queue, rows, step, criterion)


def checked_slots(
    step: Step, depth: int | None, criterion: Criterion | None, slots: int | None
) -> int | None:
    """Checks the arguments of `run_stream`; returns `slots`.

    Raises:
      TypeError, ValueError: as in `run_stream`.
    """
    if not isinstance(criterion, Criterion):
        raise TypeError(f"`criterion` must be a dx.Criterion, got {type(criterion).__name__}")
    if isinstance(step, (tuple, list)):
        raise TypeError(
            f"`step` must be one dx.Step, got a sequence of {len(step)}: all rows of a stream wait "
            "in buffers of one shape, and stages change the shape; `dx.run_until` accepts stages"
        )
    stages_of(step, depth)
    return None if slots is None else positive_integer(slots, "slots")


@watched_jit("run_stream", static_argnames=("depth", "slots", "keep_state"))
def stream(
    step: Step,
    queue: Rows,
    rows: Int[Array, ""],
    depth: int,
    criterion: Criterion,
    slots: int | None,
    keep_state: bool,
) -> Halted:
    """`run_stream` for checked arguments and the first `rows` rows of the queue.

    `rows` is int32 `[]`, traced. The results of the other rows are arbitrary.
    """
    (stage,) = stages_of(step, depth)
    count = batch_size(queue, "queue")
    tiling = default_tiling(queue, count, slots, step)
    slots = tiling.sizes[0]
    _, output = check_step(stage._replace(steps=max(2, stage.steps)), shapes(queue))
    tied = is_tied(step, queue)
    step, criterion, read = partition(
        step, depth, queue, criterion, i=jnp.zeros(count, jnp.int32) if tied else 0
    )
    if read is not None:
        stage = stage._replace(step=step)
        _, output = check_step(stage, shapes(queue))
    memory = first_memory(criterion, count, output, stage.steps)
    run = run_slots if tied else run_cohorts
    halted = run(
        stage, queue, rows, criterion, memory, output, slots, tiling, keep_state or read is not None
    )
    output, nan_exits = completed(read, halted.output, halted.nan_exits, halted.state, slots)
    state = halted.state if keep_state else None
    halted = halted._replace(output=output, nan_exits=nan_exits, state=state)
    return loops.forward_only(halted, "run_stream")


def is_tied(step: Step, state: PyTree) -> bool:
    """Whether neither the weights nor the computation of a step depend on `i`; traced, not run."""
    apply = lambda given, i: given[0].apply(given[0].select(i), i, given[1])
    return same_for_all(apply, (step, state), jnp.arange(2, dtype=jnp.int32))
