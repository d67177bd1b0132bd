"""The per-row schedule: one row after the other, each a loop of its own; little memory, no company to wait for."""

import jax
from jax import lax

from dynexit.core.checks import Stage
from dynexit.core.types import Criterion, PyTree
from dynexit.exits.masked import run_masked
from dynexit.exits.rows import Rows


def run_per_row(stages: tuple[Stage, ...], criterion: Criterion, rows: Rows, spaces: tuple[PyTree, ...]) -> tuple[Rows, tuple]:
    """As `run_masked`, a batch of one row at a time; arguments and results are the same."""
    alone = lambda tree: jax.tree.map(lambda a: a[None], tree)
    one_row = tuple(jax.tree.map(lambda s: jax.ShapeDtypeStruct((1, *s.shape[1:]), s.dtype), space) for space in spaces)

    def run(row):
        row, states = run_masked(stages, criterion, Rows._make((*alone(row), rows.executed)), one_row)
        bare = lambda tree: jax.tree.map(lambda a: a[0], tree)
        return (bare(row[:-1]), row.executed), bare(states)

    (account, executed), states = lax.map(run, tuple(rows[:-1]))
    return Rows._make((*account, executed.sum())), states
