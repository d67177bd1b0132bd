"""The six networks of the Chomsky experiment: each answers at the places that count, and its method
takes it.
"""

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
    settings = FILE.smoke
    settings = dataclasses.replace(settings, model=dataclasses.replace(settings.model, kind=kind))
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, task=task))
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
    "part, values, sentence",
    [
        ("model", {"kind": "gru"}, "model.kind must be one of elman, lstm,"),
        ("model", {"width": 12}, "model.width must be a multiple of 8, got 12"),
        ("data", {"task": "sorting"}, "data.task must be one of even_pairs, parity_check,"),
        ("data", {"test_length": 4}, "data.test_length must exceed length 4, got 4"),
    ],
)
def test_faults(part, values, sentence):
    wrong = dataclasses.replace(getattr(FILE.smoke, part), **values)
    (said,) = validate(dataclasses.replace(FILE.smoke, **{part: wrong}))
    assert said.startswith(sentence)
