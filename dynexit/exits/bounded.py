"""A bounded loop with exits through which reverse-mode gradients flow."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dynexit.core.checks import Stage, batch_size, stages_of
from dynexit.core.types import Criterion, Halted, PyTree, Step
from dynexit.exits import loops
from dynexit.exits.rows import Job, Rows, advance, advance_alone, begin, exit_depth, forget_departed, last_exit
from dynexit.exits.run import first_memory, freeze, walk


def run_bounded(step: Step | Sequence[Step], state: PyTree, depth: int | Sequence[int], criterion: Criterion) -> Halted:
    """As `run_until`, reverse-mode differentiable: outputs and states carry gradients, the decision to leave does not.

    A scan of about sqrt(N) checkpointed scans of sqrt(N) steps each: memory for 2 sqrt(N) states and not N, at the price of one
    more forward pass. Steps are skipped once every row has left, in both directions.

    Args:
      step, state, depth, criterion: as in `run_until`.

    Returns:
      `Halted`.

    Raises:
      TypeError, ValueError: as `run_until`.

    Example:
      >>> import dynexit as dx
      >>> leave = dx.Criterion(lambda batch: (), lambda i, output, memory: (output > 3.0, memory))
      >>> loss = lambda p: dx.run_bounded(dx.tied_step(lambda p, h: h * p, lambda p, h: h, p), jnp.ones(1), 9, leave).output.sum()
      >>> jax.grad(loss)(jnp.float32(2.0))  # the row leaves after two steps, at p ** 2
      Array(4., dtype=float32)
    """
    if not isinstance(criterion, Criterion):
        raise TypeError(f"`criterion` must be a dx.Criterion, got {type(criterion).__name__}")
    stages_of(step, depth)
    return _run_bounded(freeze(step), state, freeze(depth), criterion)


@functools.partial(jax.jit, static_argnames=("depth",))
def _run_bounded(step, state, depth, criterion) -> Halted:
    stages = stages_of(step, depth)
    spaces, output = walk(stages, state)
    batch = batch_size(state)
    job = Job(criterion, last_exit(stages), batch)
    rows = begin(state, output, first_memory(criterion, batch, output, job.last + 1), batch)
    states = []
    for stage, space in zip(stages, spaces, strict=True):
        if stage.steps == 1:
            rows = advance_alone(stage, job, rows, space)
        else:
            rows = _scan(stage, job, forget_departed(rows) if stage.first else rows)
        states.append(rows.state)
    final = tuple(states) if isinstance(step, tuple) else states[0]
    return Halted(rows.output, rows.exit, exit_depth(stages, rows.exit), final, rows.memory, rows.nan_exits, rows.executed)


def _scan(stage: Stage, job: Job, rows: Rows) -> Rows:
    def one(rows, i):
        run = lambda rows: advance(stage, i, job, rows)
        return loops.maybe(rows.alive.any(), run, lambda rows: rows, rows), None

    several = jax.checkpoint(lambda rows, i: loops.scan(one, rows, i), prevent_cse=False)
    chunk = math.isqrt(stage.steps)
    whole = stage.steps // chunk * chunk
    indices = jnp.arange(stage.steps, dtype=jnp.int32)
    rows, _ = loops.scan(several, rows, indices[:whole].reshape(-1, chunk))
    return loops.scan(one, rows, indices[whole:])[0]
