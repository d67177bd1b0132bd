"""The masked schedule: every row runs until the last one is done; what `vmap` of a while loop does, and the yardstick."""

import jax.numpy as jnp
from jax import lax

from dynexit.core.checks import Stage
from dynexit.core.types import Criterion, PyTree
from dynexit.exits.rows import Rows, advance, advance_alone, forget_departed, last_exit


def run_masked(stages: tuple[Stage, ...], criterion: Criterion, rows: Rows, spaces: tuple[PyTree, ...]) -> tuple[Rows, tuple]:
    """Runs all rows together, keeping what a halted row had.

    Args:
      stages: the network.
      criterion: when a row leaves.
      rows: from `begin`.
      spaces: shapes of the state after each stage.

    Returns:
      rows: the account after the last stage.
      states: the state of every row as it left each stage, zeros where it never came.
    """
    last, states = last_exit(stages), []
    for stage, space in zip(stages, spaces, strict=True):
        if stage.steps == 1:
            rows = advance_alone(stage, criterion, rows, last, space)
        else:
            rows = _loop(stage, criterion, forget_departed(rows) if stage.first else rows, last)
        states.append(rows.state)
    return rows, tuple(states)


def _loop(stage: Stage, criterion: Criterion, rows: Rows, last: int) -> Rows:
    body = lambda carry: (carry[0] + 1, advance(stage, carry[0], criterion, carry[1], last))
    go_on = lambda carry: (carry[0] < stage.steps) & carry[1].alive.any()
    return lax.while_loop(go_on, body, (jnp.int32(0), rows))[1]
