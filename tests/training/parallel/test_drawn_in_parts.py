"""The compiled program that draws parameters: no device holds one whole that it shares."""

import re

import jax
import pytest

import dynexit as dx
from dynexit.core.settings import Mesh, Training
from dynexit.training.parallel.mesh import make_mesh
from dynexit.training.state import init_program, state_shapes, state_shardings

IMAGE, CLASSES = (8, 8, 1), 12


@pytest.mark.compiled
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param(Mesh(fsdp=4), marks=pytest.mark.slow),
        pytest.param(Mesh(model=4), marks=pytest.mark.slow),
        Mesh(fsdp=2, model=2),
    ],
    ids=str,
)
def test_no_split_parameter_is_whole_on_a_device(sizes):
    batch = {"inputs": None, "labels": None}
    splits = [
        dx.Source(s, lambda *_: batch, lambda: batch, 0) for s in ("train", "calibration", "test")
    ]
    vit = dx.models.Vit(patch=2, width=72, depth=5, heads=4).build(IMAGE, CLASSES)
    experiment = dx.Experiment(vit, dx.methods.ConfidenceExits().build(), *splits)
    settings, mesh = Training(), make_mesh(sizes)
    program = init_program(experiment, settings, mesh).lower(jax.random.key(0)).compile()
    arrays = set(re.findall(r"[fu]32\[([\d,]+)\]", program.as_text()))
    params = state_shapes(experiment, settings).params
    where = state_shardings(experiment, settings, mesh).params
    checked = 0
    for leaf, placed in zip(jax.tree.leaves(params), jax.tree.leaves(where), strict=True):
        if not placed.is_fully_replicated and leaf.size > 4096:
            assert ",".join(map(str, leaf.shape)) not in arrays
            checked += 1
    assert checked >= 4
