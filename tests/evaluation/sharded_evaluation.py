"""Evaluates one experiment on a mesh and on one device: `python sharded_evaluation.py DATA FSDP`.

Prints the names of the figures that differ and are no times, as JSON.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from dynexit import evaluation
from dynexit.calibration.rules.accept_loss import accept_loss
from dynexit.core.settings import Evaluation

SIZE = 4  # 43 rows of the test split: 11 batches, of which the last holds 3 rows
POINT = {"threshold": jnp.array([0.5, 0.6, 0.55, 0.7])}


def figures(made, params, mesh):
    """What calibration chose and the report, without times."""
    calibrated = evaluation.calibrate(made, params, accept_loss(0.1), SIZE, mesh=mesh)
    calibrated = calibrated._replace(choice=calibrated.choice._replace(operating_point=POINT))
    settings = Evaluation(SIZE, timed_rows=SIZE, repeats=1, tune=False)
    lines = []
    measured = evaluation.evaluate(made, params, calibrated, settings, lines.append, mesh)
    content = evaluation.report(measured, POINT, {})
    times = ("seconds", "speedup", "efficiency", "timed_points", "full_program")
    kept = {k: v for k, v in content.items() if not k.startswith(times)}
    return {
        **kept,
        "points": calibrated.points,
        "chosen": calibrated.choice.exit_fraction,
        "records": measured.records._asdict(),
        "classes": measured.classes,
        "exit": measured.exit,
    }


def differing(made, mesh):
    """Names of figures that are not equal bit for bit."""
    params = jax.jit(made.model.init)(jax.random.key(0))
    alone, spread = (figures(made, params, m) for m in (None, mesh))
    assert len(set(alone["exit"].tolist())) > 2

    def same(a, b):
        leaves = [jax.tree.leaves(tree) for tree in (a, b)]
        return len(leaves[0]) == len(leaves[1]) and all(map(np.array_equal, *leaves))

    return sorted(name for name in alone if not same(alone[name], spread[name]))


if __name__ == "__main__":
    import conftest

    shape = *map(int, sys.argv[1:]), 1
    mesh = jax.make_mesh(shape, ("data", "fsdp", "model"), (AxisType.Auto,) * 3)
    print(json.dumps(differing(conftest.build(conftest.alike_model()), mesh)))
