"""The masked executor: all rows run until the last has exited, as in `vmap` of a while loop."""

import jax.numpy as jnp

from dynexit.core.shapes import PyTree
from dynexit.core.stages import Stage
from dynexit.engine import loops
from dynexit.engine.rows import Job, RowCarry, advance, advance_alone, clear_exited


def run_masked(
    stages: tuple[Stage, ...], job: Job, rows: RowCarry, spaces: tuple[PyTree, ...]
) -> tuple[RowCarry, tuple[PyTree, ...]]:
    """Runs all rows together; rows that have exited do not change.

    Args:
      stages: the network.
      job: the criterion and the size of the run.
      rows: from `begin`.
      spaces: shapes of the state after each stage.

    Returns:
      rows: the rows after the last stage.
      states: the state of every row after each stage, zeros for a row that did not enter it.
    """
    states: list[PyTree] = []
    for stage, space in zip(stages, spaces, strict=True):
        if stage.steps == 1:
            rows = advance_alone(stage, job, rows, space)
        else:
            rows = _loop(stage, job, clear_exited(rows) if stage.first else rows)
        states.append(rows.state)
    return rows, tuple(states)


def _loop(stage: Stage, job: Job, rows: RowCarry) -> RowCarry:
    body = lambda carry: (carry[0] + 1, advance(stage, carry[0], job, carry[1]))
    go_on = lambda carry: (carry[0] < stage.steps) & carry[1].alive.any()
    return loops.while_loop(go_on, body, (jnp.int32(0), rows))[1]
