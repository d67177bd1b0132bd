"""`run_observed`: every exit of the network, with the outputs reduced as they are computed."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from dynexit.core.shapes import Array, ExitRows, Int, PyTree, Rows
from dynexit.core.stages import Depth, Stage, stages_of
from dynexit.core.types import Step
from dynexit.engine.run import run_all

Observe: TypeAlias = Callable[[Int[Array, ""], Rows, Rows], tuple[Rows, Rows]]


def run_observed(
    step: Step | Sequence[Step],
    state: Rows,
    depth: Depth,
    observe: Observe,
    memory: Rows = (),
) -> ExitRows:
    """`run_all` that reduces the output of each exit before the next block runs.

    Args:
      step, state, depth: as in `run_all`.
      observe: `observe(exit, output, memory) -> (kept, memory)` at exit `exit`, int32 `[]`; leaves
        `[B, ...]`.
      memory: before the first exit, leaves `[B, ...]`.

    Returns:
      The kept values, leaves `[E, B, ...]`. Only one output is held in memory at a time.

    Raises:
      TypeError, ValueError: as `run_all`.

    Example:
      >>> import jax.numpy as jnp
      >>> import dynexit as dx
      >>> step = dx.stacked_step(lambda p, h: h * p, lambda p, h: h, jnp.full(3, 2.0))
      >>> largest = lambda exit, output, memory: (output.max(axis=1), memory)
      >>> run_observed(step, jnp.ones((1, 1000)), 3, largest)[:, 0].tolist()
      [2.0, 4.0, 8.0]
    """
    stages = stages_of(step, depth)
    watched = tuple(_watched(stage, observe) for stage in stages)
    several = isinstance(step, (tuple, list))
    return run_all(watched if several else watched[0], (state, memory), depth)


def _watched(stage: Stage, observe: Observe) -> Step:
    def apply(weights: PyTree, i: Any, carried: PyTree) -> tuple[PyTree, PyTree]:
        state, memory = carried
        state, output = stage.step.apply(weights, i, state)
        kept, memory = observe(stage.first + i, output, memory)
        return (state, memory), kept

    return Step(stage.step.select, apply, stage.step.blocks, stage.step.depth)
