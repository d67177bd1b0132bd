"""Where rows exit during training: the shares of the exits at the point that would be chosen."""

import dataclasses

import numpy as np
import pytest

import dynexit as dx
from dynexit.calibration.rules import accept_loss, budget
from dynexit.evaluation.calibrate import calibrate
from dynexit.evaluation.exit_depths import depth_evals, masked_occupancy
from dynexit.training.logs import read_records, without_clock
from dynexit.training.loop import fit


@dataclasses.dataclass(frozen=True)
class Settings(dx.Settings):
    model: dx.models.Vit = dx.models.Vit(patch=4, stride=4, width=8, depth=2, heads=1)
    method: dx.methods.ConfidenceExits = dx.methods.ConfidenceExits()
    data: dx.data.Digits = dx.data.Digits()
    training: dx.Training = dx.Training(
        steps=4, batch_size=16, checkpoint_every=2, eval_every=2, eval_rows=64, wandb="offline"
    )


@pytest.fixture(scope="module")
def experiment():
    return Settings().build()


def test_shares_are_those_of_calibration(experiment):
    import jax

    params = experiment.model.init(jax.random.key(0))
    training = dataclasses.replace(Settings().training, eval_rows=None)
    ((name, depths),) = depth_evals(experiment, training, budget(0.8), 32)
    found, choice = depths(params), calibrate(experiment, params, budget(0.8), 32).choice
    assert name == "depth"
    assert [found[f"share_exit_{e}"] for e in (0, 1)] == choice.exit_fraction.tolist()
    assert found["mean_exits"] == choice.mean_depth == pytest.approx(1 + found["share_exit_1"])
    assert found["flops_ratio"] == choice.cost_fraction
    p = choice.exit_fraction
    assert found["entropy"] == pytest.approx(-(p * np.log(np.maximum(p, 1e-300))).sum())
    assert depth_evals(experiment, training, budget(1e-9), 32)[0][1](params) == {}


def test_without_wandb_there_is_none(experiment):
    off = dataclasses.replace(Settings().training, wandb="off")
    assert depth_evals(experiment, off, accept_loss(0.0), 32) == ()
    never = dataclasses.replace(Settings().training, eval_every=0)
    assert depth_evals(experiment, never, accept_loss(0.0), 32) == ()


@pytest.mark.slow
def test_records_of_a_resumed_run_are_those_of_an_uninterrupted_one(
    experiment, tmp_path, monkeypatch
):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    training = Settings().training
    evals = depth_evals(experiment, training, accept_loss(0.02), 32)
    half = dataclasses.replace(training, steps=2, schedule="constant", warmup=0.0)
    whole = dataclasses.replace(half, steps=4)
    for settings, name in ((half, "twice"), (whole, "twice"), (whole, "once")):
        fit(experiment, settings, tmp_path / name, 0, progress=False, evals=evals)
    twice, once = (
        [without_clock(r) for r in read_records(tmp_path / name / "metrics.jsonl")]
        for name in ("twice", "once")
    )
    assert [r["step"] for r in once] == [1, 2, 4]
    assert 0 <= once[-1]["eval_depth_share_exit_0"] <= 1
    assert twice == once


def test_occupancy_is_that_of_sampled_batches():
    shares, size = np.array([0.6, 0.3, 0.1]), 8
    depths = 1 + np.random.default_rng(0).choice(3, size=(20_000, size), p=shares)
    sampled = depths.mean() / depths.max(axis=1).mean()
    assert masked_occupancy(shares, size) == pytest.approx(sampled, rel=0.01)
