"""The whole measurement of a weight-tied network with an answer at every place, tested on longer
rows than it was calibrated on.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.calibration import rules
from dynexit.core.labels import IGNORED, share
from dynexit.core.settings import Evaluation
from dynexit.data.source import from_leaves
from dynexit.data.tasks.prefix_sums import prefix_sums
from dynexit.evaluation.calibrate import calibrate
from dynexit.evaluation.measure import evaluate
from dynexit.evaluation.reports.reporting import markdown, report, summary

ROWS, STEPS, THRESHOLDS = 10, 6, jnp.array([0.0, 1e-5, 3e-4, 1e-2])
ABOUT = {"name": "bits", "classes": ["even", "odd"], "batch_size": 4}


def sums(split, length, seed):
    """Strings of which a random part counts, with a number of steps that says how much."""
    batch = prefix_sums(length).train.batch(seed, 0, ROWS)
    counts = np.random.default_rng(seed).integers(1, length + 1, ROWS)
    batch["labels"] = np.where(
        np.arange(length) < counts[:, None], batch["labels"], IGNORED
    ).astype(np.int32)
    return from_leaves(split, {**batch, "steps": counts.astype(np.int32)})


@pytest.fixture(scope="module")
def measured():
    model = dx.models.DeepThinking(width=4, steps=STEPS, blocks=1).build((8, 1), 2)
    method = dx.methods.deep_thinking(3, settled=1, thresholds=THRESHOLDS)._replace(score=share)
    splits = sums("train", 5, 0), sums("calibration", 5, 1), sums("test", 9, 2)
    experiment = dx.Experiment(model, method, *splits, None, None, ("even", "odd"))
    params = jax.tree.map(lambda a: 0.5 * a, model.init(jax.random.key(1)))
    found = calibrate(experiment, params, rules.budget(0.9), 4)
    settings = Evaluation(4, repeats=1, timed_rows=5, tune=False)
    return (
        experiment,
        params,
        found.costs,
        found.choice,
        evaluate(experiment, params, found, settings, lambda line: None),
    )


def test_costs_are_those_of_the_longer_rows(measured):
    _, _, costs, _, e = measured
    np.testing.assert_allclose(e.costs.blocks / costs.blocks, 9 / 5, rtol=0.1)


def test_answers_of_all_rows_and_timings_of_some(measured):
    experiment, params, _, choice, e = measured
    assert e.timings.rows == 8, "two whole batches of four hold the five rows asked for"
    assert e.classes.shape == (ROWS, 9) and e.agreement == 1.0
    x = jnp.asarray(experiment.test.examples()["inputs"])
    model, rule = experiment.model, experiment.method.criterion(choice.operating_point)
    alone = [
        dx.run_until(model.steps(params), model.embed(params, x[r : r + 1]), STEPS, rule)
        for r in range(ROWS)
    ]
    assert e.exit.tolist() == [int(a.exit[0]) for a in alone] and len(set(e.exit.tolist())) > 1
    np.testing.assert_array_equal(e.classes, [a.output[0].argmax(-1) for a in alone])


def test_the_stream_is_timed_and_accuracy_is_the_grade(measured):
    _, _, _, choice, e = measured
    content = report(e, choice.operating_point, ABOUT)
    labels = e.records.labels
    wanted = [
        np.mean([c == t for c, t in zip(row, label, strict=True) if t >= 0])
        for row, label in zip(e.classes, labels, strict=True)
    ]
    np.testing.assert_allclose(content["accuracy_dynamic"], np.mean(wanted))
    np.testing.assert_allclose(
        content["efficiency_streamed"], e.timings.ideal / e.timings.streamed.median
    )
    assert "streamed: " in summary(content)[-1][2] and -1 <= content["depth_follows_steps"] <= 1
    more = {
        "summary": "Bits.",
        "data": dict.fromkeys(("train", "calibration", "test"), ROWS),
        "parameters": 5,
    }
    more |= {
        "training": {"step": 1, "of": 1},
        "seed": 0,
        "hardware": "cpu",
        "repeats": 1,
        "command": "",
        "versions": {},
        "plots": [],
    }
    chosen = {"chosen_by": "a budget", "accuracy": 0.5, "flops_ratio": 0.9, "accuracy_full": 0.5}
    chosen["guarantee"] = "none"
    text = markdown({**content, **more, "calibration": chosen, "commit": None})
    assert (
        "Spearman's correlation" in text
        and "Throughput of the stream along the curve: efficiency " in text
    )


def test_the_stream_is_timed_along_the_curve(measured):
    experiment, params, _, choice, e = measured
    x, model = (
        jnp.asarray(experiment.test.examples()["inputs"])[np.arange(8) * ROWS // 8],
        experiment.model,
    )
    for k, ratio in zip(e.timed.index, e.timed.block_ratio, strict=True):
        rule = experiment.method.criterion({"threshold": THRESHOLDS[k]})
        depths = dx.run_until(model.steps(params), model.embed(params, x), STEPS, rule).exit_depth
        np.testing.assert_allclose(ratio, depths.mean() / STEPS, rtol=1e-6)
    assert len(set(e.timed.block_ratio)) > 1
    told = report(e, choice.operating_point, ABOUT)["timed_points"]
    np.testing.assert_allclose(
        told["efficiency_streamed"], e.timed.full * e.timed.block_ratio / e.timed.streamed
    )
