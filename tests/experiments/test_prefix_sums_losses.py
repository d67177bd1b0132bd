"""Prefix sums, trained as deep thinking and as recurrent depth."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from dynexit.runs.experiment_file import load

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.mark.parametrize(
    "name, metric", [("prefix_sums", "loss_progressive"), ("prefix_sums_recurrent", "loss_last")]
)
def test_each_variant_trains_with_its_own_loss(name, metric):
    file, key = load(EXPERIMENTS / f"{name}.py"), jax.random.key(0)
    experiment = file.build(file.smoke)
    batch, model = experiment.train.batch(0, 0, 4), experiment.model
    _, metrics = jax.jit(
        lambda p: experiment.method.loss(
            model, p, batch["inputs"], batch["labels"], key, jnp.float32(0.0)
        )
    )(model.init(key))
    assert metric in metrics
    if name == "prefix_sums_recurrent":  # whole strings count, as in the report
        assert float(metrics["accuracy"]) in (0, 0.25, 0.5, 0.75, 1)
