"""Stored outputs equal those of every block applied by hand, whatever the batch size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.core.checks import stages_of
from dynexit.evaluation.predictions import fingerprint, predict


def by_hand(experiment, params, row):
    """Logits [E, C] of one example, block by block."""
    state = experiment.model.embed(params, experiment.prepare(jnp.asarray(row)[None]))
    read = []
    for step, steps, _, _ in stages_of(experiment.model.steps(params), experiment.model.depth):
        for i in range(steps):
            state, output = step.apply(step.select(i), i, state)
            read.append(np.asarray(output[0]))
    return np.stack(read)


@pytest.mark.parametrize("batch_size", [7, 43, 64])
def test_predictions_are_every_exit_of_every_example(experiment, params, batch_size):
    found = predict(experiment, params, experiment.test, batch_size)
    inputs = experiment.test.examples()["inputs"]
    assert found.outputs.shape == (5, 43, 4) and found.outputs.dtype == np.float32
    for m in (0, 6, 7, 42):
        np.testing.assert_allclose(
            found.outputs[:, m], by_hand(experiment, params, inputs[m]), atol=1e-5
        )
    np.testing.assert_array_equal(found.labels, experiment.test.examples()["labels"])


def test_half_precision_outputs_are_kept_as_float32(experiment, params):
    cast = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    half = experiment._replace(prepare=lambda x: x.astype(jnp.bfloat16) / 8)
    assert predict(half, cast, experiment.test, 16).outputs.dtype == np.float32


def test_fingerprints_tell_splits_apart(experiment):
    test, again = (
        experiment.test.examples(),
        {k: v.copy() for k, v in experiment.test.examples().items()},
    )
    assert fingerprint(test) == fingerprint(again) != fingerprint(experiment.calibration.examples())
    again["labels"][3] += 1
    assert fingerprint(test) != fingerprint(again)
