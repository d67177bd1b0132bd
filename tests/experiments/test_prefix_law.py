"""Prefix sums with the law of deep thinking and with that of recurrent depth."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from dynexit.core.settings import validate
from dynexit.runs.experiment_file import load

FILE = load(Path(__file__).parents[2] / "experiments" / "prefix_sums.py")


def with_mean(mean):
    return dataclasses.replace(FILE.smoke, method=dataclasses.replace(FILE.smoke.method, mean=mean))


def test_a_mean_trains_with_a_random_number_of_iterations():
    assert validate(with_mean(0.0)) == ["method.mean must be above 0, got 0.0"]
    settled = dataclasses.replace(
        FILE.smoke, method=dataclasses.replace(FILE.smoke.method, mean=2.0, settled=2)
    )
    assert validate(settled) == ["method.settled must be 1 where mean is given, got 2"]
    batch, key = FILE.build(FILE.smoke).train.batch(0, 0, 4), jax.random.key(0)
    told = {}
    for mean in (None, 2.0):
        experiment = FILE.build(with_mean(mean))
        params = experiment.model.init(key)
        told[mean] = experiment.method.loss(
            experiment.model, params, batch["inputs"], batch["labels"], key, jnp.float32(0.0)
        )[1]
    assert "loss_progressive" in told[None] and "loss_last" in told[2.0]
    assert told[2.0]["accuracy"] in (0, 0.25, 0.5, 0.75, 1), "whole strings count, as in the report"
