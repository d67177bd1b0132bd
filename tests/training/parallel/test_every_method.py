"""Every method trains on a mesh as on one device: losses of the first updates."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

import dynexit as dx
from dynexit.core.settings import Mesh, Training
from dynexit.training.parallel.mesh import make_mesh
from dynexit.training.parallel.placement import put_batch
from dynexit.training.state import create_state
from dynexit.training.step import make_train_step

BATTERY = Path(__file__).parents[2] / "contracts" / "test_methods_contract.py"
spec = importlib.util.spec_from_file_location("methods_battery", BATTERY)
assert spec is not None and spec.loader is not None
battery = importlib.util.module_from_spec(spec)
spec.loader.exec_module(battery)

UPDATES = 3
WHOLE = ("Ctm",)  # has one attention head, which the axis "model" cannot split


def losses(experiment, mesh):
    settings = Training(steps=UPDATES, batch_size=8, learning_rate=1e-2, warmup=0.0, remat=False)
    state = create_state(experiment, settings, 0, mesh)
    step, found = make_train_step(experiment, settings, mesh), []
    for s in range(UPDATES):
        state, metrics = step(state, put_batch(experiment.train.batch(0, s, 8), mesh))
        found.append(float(metrics["loss"]))
    return np.array(found), state


@pytest.mark.slow
@pytest.mark.parametrize("name", battery.CASES)
def test_losses_are_those_of_one_device(name):
    case = battery.CASES[name]
    if isinstance(case.method, dx.methods.NeuralOde):
        pytest.importorskip("diffrax")
    splits = (battery.source(case, split) for split in battery.SPLITS)
    model = case.model.build(case.inputs, battery.CLASSES)
    experiment = dx.Experiment(model, battery.built(case), *splits)
    one, _ = losses(experiment, make_mesh(devices=jax.devices()[:1]))
    for sizes in [Mesh(fsdp=4), *([] if name in WHOLE else [Mesh(fsdp=2, model=2)])]:
        several, state = losses(experiment, make_mesh(sizes))
        # the solver's own tolerance is 1e-3, and rounding moves its steps
        rtol = 2e-3 if isinstance(case.method, dx.methods.NeuralOde) else 1e-4
        np.testing.assert_allclose(several, one, rtol=rtol, err_msg=str(dataclasses.asdict(sizes)))
        assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(state.params))
