"""The per-row executor: a loop over rows, each run to its own depth, with little memory."""

from typing import Any

import jax

from dynexit.core.shapes import PyTree
from dynexit.core.stages import Stage
from dynexit.engine import loops
from dynexit.engine.executors.masked import run_masked
from dynexit.engine.rows import Job, RowCarry


def run_per_row(
    stages: tuple[Stage, ...], job: Job, rows: RowCarry, spaces: tuple[PyTree, ...]
) -> tuple[RowCarry, tuple[PyTree, ...]]:
    """Runs one row at a time; arguments and results are those of `run_masked`."""
    alone = lambda tree: jax.tree.map(lambda a: a[None], tree)
    one_row = tuple(
        jax.tree.map(lambda s: jax.ShapeDtypeStruct((1, *s.shape[1:]), s.dtype), space)
        for space in spaces
    )

    def run(common: Any, row: Any) -> tuple[Any, PyTree]:
        executed, side = common
        row, states = run_masked(
            stages, job, alone(row)._replace(executed=executed, side=side), one_row
        )
        bare = lambda tree: jax.tree.map(lambda a: a[0], tree)
        return (row.executed, row.side), bare((row._replace(executed=None, side=None), states))

    common = rows.executed, rows.side
    (executed, side), (account, states) = loops.scan(
        run, common, rows._replace(executed=None, side=None)
    )
    return account._replace(executed=executed, side=side), states
