"""The six networks of the Chomsky experiment answer at the places that count."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.core.labels import IGNORED, share
from dynexit.core.settings import validate
from dynexit.runs.experiment_file import load

FILE = load(Path(__file__).parents[2] / "experiments" / "chomsky.py")
KINDS = ("elman", "lstm", "transformer", "universal", "thinking", "recurrent")


def built(kind, task):
    data = dataclasses.replace(FILE.smoke.data, task=task)
    settings = dataclasses.replace(FILE.smoke, network=kind, data=data)
    assert validate(settings) == []
    return FILE.build(settings)


@pytest.mark.parametrize("kind", KINDS)
def test_every_network_answers_where_the_task_asks(kind):
    experiment = built(kind, "bucket_sort")
    batch = experiment.train.batch(0, 0, 4)
    inputs = batch["inputs"] if experiment.prepare is None else experiment.prepare(batch["inputs"])
    model, method = experiment.model, experiment.method
    params = jax.jit(model.init)(jax.random.key(0))
    outputs = jax.jit(lambda p, x: dx.run_all(model.steps(p), model.embed(p, x), model.depth))(
        params, inputs
    )
    answers = np.asarray(method.predict(jax.tree.map(lambda a: a[-1], outputs)))
    assert answers.shape == batch["labels"].shape and answers.max() < len(experiment.classes)
    assert batch["labels"].max() < len(experiment.classes) and (batch["labels"] != IGNORED).any()
    labels, half = jnp.asarray(batch["labels"]), jnp.float32(0.5)
    if method.loss is None:
        losses, _ = method.objective(outputs, labels, half)
    else:
        losses, _ = jax.jit(
            lambda p: method.loss(model, p, inputs, labels, jax.random.key(1), half)
        )(params)
    assert losses.shape == (4,) and np.isfinite(losses).all() and method.score is share


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"network": "gru"}, "network must be one of elman, lstm,"),
        ({"width": 12}, "width must be a positive multiple of 8, got 12"),
        ({"steps": 8, "most": 16}, "steps must be at least most, got 8 and 16"),
        ({"most": 3}, "most must be at least 4, got 3"),
    ],
)
def test_invalid_settings(values, sentence):
    (found,) = validate(dataclasses.replace(FILE.smoke, **values))
    assert found.startswith(sentence)
