"""Mazes begun from the weights of another run."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import dynexit as dx
from dynexit.cli.settings import load

FILE = load(Path(__file__).parents[2] / "experiments" / "mazes.py")


def test_training_begins_with_the_weights_of_the_run_that_is_named(monkeypatch):
    small = FILE.smoke
    params = jax.jit(FILE.build(small).model.init)(jax.random.key(5))
    monkeypatch.setattr(dx.cli, "trained", lambda folder: SimpleNamespace(params=params) if folder == "runs/first" else None)
    begun = FILE.build(dataclasses.replace(small, model=dataclasses.replace(small.model, start="runs/first"))).model
    jax.tree.map(np.testing.assert_array_equal, begun.init(jax.random.key(0)), params)
    with pytest.raises(ValueError, match=r"model\.start is a network of other sizes; name those of runs/first"):
        FILE.build(dataclasses.replace(small, model=dataclasses.replace(small.model, width=16, start="runs/first")))
