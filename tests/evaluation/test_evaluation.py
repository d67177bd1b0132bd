"""The whole measurement on a staged network, against a loop over rows; the report and the pictures
made of it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.calibration.choose import Choice
from dynexit.core.settings import Evaluation
from dynexit.evaluation.calibrate import Calibrated
from dynexit.evaluation.costs import costs_of
from dynexit.evaluation.latency import Timing
from dynexit.evaluation.measure import evaluate
from dynexit.evaluation.reports import pictures, plots
from dynexit.evaluation.reports.reporting import markdown, report, summary
from dynexit.evaluation.timings import programs

ABOUT = {
    "name": "tiny",
    "summary": "A tiny network.",
    "classes": list("abcd"),
    "data": {"train": 20, "calibration": 30, "test": 43},
    "parameters": 123456,
    "training": {"step": 7, "of": 7},
    "calibration": {
        "chosen_by": "a coin",
        "accuracy": 0.5,
        "accuracy_full": 0.6,
        "flops_ratio": 0.7,
        "guarantee": "none",
    },
    "seed": 3,
    "batch_size": 16,
    "repeats": 1,
    "hardware": "1 x cpu",
    "command": "dynexit train tiny.py",
    "commit": None,
    "versions": {"jax": "1.2.3"},
    "plots": ["accuracy"],
}


@pytest.fixture(scope="module")
def measured(staged, operating_point):
    """The measurement and its parameters."""
    params = jax.jit(staged.model.init)(jax.random.key(0))
    costs = costs_of(staged.model, params, np.zeros((16, 2), np.float32))
    settings = Evaluation(16, repeats=1, tune=False)
    return evaluate(
        staged, params, calibrated(staged, operating_point, costs), settings, lambda line: None
    )


def calibrated(experiment, operating_point, costs):
    """`operating_point` as calibration would hand it over: 30 rows, as many at every exit."""
    choice = Choice(
        operating_point,
        0,
        0.5,
        0.6,
        0.1,
        1.0,
        0.7,
        3.0,
        np.full(5, 0.2),
        "a coin",
        "none",
        "calibration",
        "digest",
        30,
    )
    return Calibrated(choice, experiment.method.candidates.points(None, {}, None), costs)


@pytest.fixture(scope="module")
def content(measured, operating_point):
    return report(measured, operating_point, ABOUT)


def test_the_program_answers_what_a_loop_over_rows_answers(staged, measured, operating_point):
    thresholds, inputs = np.asarray(operating_point["threshold"]), staged.test.examples()["inputs"]
    params = jax.jit(staged.model.init)(jax.random.key(0))
    state = staged.model.embed(params, staged.prepare(jnp.asarray(inputs)))
    outputs = np.asarray(dx.run_all(staged.model.steps(params), state, staged.model.depth))
    probability = np.asarray(jax.nn.softmax(outputs, axis=-1))
    exits = [
        next((e for e in range(4) if probability[e, m].max() > thresholds[e]), 4) for m in range(43)
    ]
    np.testing.assert_array_equal(measured.exit, exits)
    np.testing.assert_array_equal(
        measured.classes, [outputs[e, m].argmax() for m, e in enumerate(exits)]
    )
    np.testing.assert_array_equal(measured.records.predictions, outputs.argmax(-1))
    assert measured.agreement == 1.0 and measured.nan_exits == 0 and len(set(exits)) > 2


def test_ideal_time_follows_the_blocks_that_the_timed_rows_needed(measured):
    t, blocks = measured.timings, measured.costs.blocks
    timed = np.concatenate([measured.exit, measured.exit[:5]])  # three batches of 16 for 43 rows
    assert (
        t.rows == 48
        and t.full_program in t.contenders
        and set(t.contenders) == {"full", "full tiled 8"}
    )
    needed = np.mean([blocks[: e + 1].sum() for e in timed]) / blocks.sum()
    np.testing.assert_allclose(t.block_ratio, needed)
    np.testing.assert_allclose(t.ideal, t.full.median * needed)
    np.testing.assert_allclose(t.efficiency, t.ideal / t.compacted.median)
    np.testing.assert_allclose(t.efficiency_masked, t.ideal / t.masked.median)
    # rows this small run in one tile, which may have a few padding rows beyond the batch
    assert 0.9 * (timed + 1).sum() / (48 * 5) < measured.occupancy <= 1
    until = np.cumsum(blocks) / blocks.sum()
    np.testing.assert_allclose(t.together_ratio, min(until, key=lambda share: abs(share - needed)))
    np.testing.assert_allclose(t.ceiling, t.full.median * t.together_ratio / t.together.median)


@pytest.mark.slow
def test_tuned_tiles_change_no_answer(staged, operating_point, measured):
    params = jax.jit(staged.model.init)(jax.random.key(0))
    said, found = [], calibrated(staged, operating_point, measured.costs)
    tuned = evaluate(staged, params, found, Evaluation(4, repeats=1), said.append)
    np.testing.assert_array_equal(tuned.exit, measured.exit)
    np.testing.assert_array_equal(tuned.classes, measured.classes)
    assert measured.tuned is None and tuned.tuned is not None and len(tuned.tuned.tile) == 3
    assert any(line.startswith("tuned: ") for line in said)
    assert report(tuned, operating_point, ABOUT)["tuned"] == str(tuned.tuned)


def test_some_points_of_the_curve_are_timed(measured):
    assert (
        2 <= len(measured.timed.index) <= 6
        and (np.diff(measured.curve.cost[measured.timed.index]) > 0).all()
    )
    np.testing.assert_allclose(measured.timed.speedup, measured.timed.full / measured.timed.seconds)


def test_a_step_that_breaks_is_not_hidden(staged, operating_point):
    """A NaN at an exit keeps its row, is counted, and the answer is that of a later exit."""
    params = jax.jit(staged.model.init)(jax.random.key(0))
    params["blocks"][0]["out"] = params["blocks"][0]["out"].at[0].set(jnp.nan)
    ran = programs(staged, params, 16).dynamic(operating_point, jnp.ones((16, 2)))
    assert ran.nan_exits.tolist() == [1] * 16 and (np.asarray(ran.exit_depth) > 1).all()


def test_the_report_says_what_was_measured(content, measured):
    assert content["accuracy_dynamic"] == (measured.classes == measured.records.labels).mean()
    assert content["mean_depth"] == (measured.exit + 1).mean() and content["depth"] == 5
    assert (
        content["seconds_dynamic"] == measured.timings.compacted.median
        and content["name"] == "tiny"
    )
    np.testing.assert_allclose(
        content["operating_point"]["threshold"], [0.5, 0.6, 0.55, 0.7], atol=1e-6
    )
    np.testing.assert_allclose(
        content["flops_ratio"], measured.costs.until[measured.exit].mean() / measured.costs.full
    )
    affordable = [
        e for e in range(5) if measured.costs.alone[e] <= measured.costs.until[measured.exit].mean()
    ]
    best = max(affordable, key=lambda e: content["accuracy_per_exit"][e])
    assert (
        content["accuracy_fixed"] == content["accuracy_per_exit"][best]
        and content["depth_fixed"] == best + 1 < 5
    )
    text = markdown(content)
    rows = [
        f"The best fixed depth of no more FLOPs is {best + 1}",
        f"{content['accuracy_full']:.2%}",
        f"| 4 | 5 | {content['accuracy_per_exit'][4]:.2%}",
        "threshold: 0.5, 0.6, 0.55, 0.7",
    ]
    for words in [
        *rows,
        "dynexit train tiny.py",
        "jax 1.2.3",
        "a coin",
        "123,456 parameters",
        "![accuracy](accuracy.png)",
    ]:
        assert words in text
    assert "commit" not in text


def test_the_table_says_points_lost_and_units(content):
    lost = {
        **content,
        "accuracy_full": 0.91,
        "accuracy_dynamic": 0.905,
        "flops_full": 2.5e6,
        "flops_ratio": 0.5,
        "rows_timed": 1000,
    }
    rows = {
        row[0]: row[1:] for row in summary({**lost, "seconds_full": 0.2, "seconds_dynamic": 0.1})
    }
    assert rows["accuracy"] == ("91.00%", "90.50% (-0.50 points)")
    assert rows["FLOPs per row"] == ("2.50 MFLOP", "1.25 MFLOP (50.0%)")
    assert rows["time per row"] == ("200.0 us", "100.0 us")


def test_a_timing_holds_its_spread(measured):
    assert all(
        isinstance(t, Timing) and t.low <= t.median <= t.high
        for t in (*measured.timings[2:5], measured.timings.together)
    )


@pytest.mark.parametrize("shape", [(43, 8, 8), (43, 8, 8, 1), (43, 8, 8, 3), (43, 12)])
def test_pictures_are_drawn_of_images_and_of_short_sequences(content, measured, tmp_path, shape):
    inputs = np.random.default_rng(0).random(shape)
    labels = measured.records.labels
    path = pictures.examples_by_depth(
        inputs, labels, measured.classes, measured.exit, content, tmp_path / "x.png"
    )
    assert path.read_bytes().startswith(b"\x89PNG")


def test_other_inputs_are_not_drawn(content, measured, tmp_path):
    labels = measured.records.labels
    for inputs in (np.zeros((43, 1000)), {"tokens": np.zeros((43, 3))}):
        assert (
            pictures.examples_by_depth(
                inputs, labels, measured.classes, measured.exit, content, tmp_path / "x.png"
            )
            is None
        )
    assert not (tmp_path / "x.png").exists()


def test_curves_and_histogram_are_drawn_and_no_figure_stays_open(content, tmp_path):
    from matplotlib import pyplot

    plots.accuracy_against_compute(content, tmp_path / "a.png")
    plots.depth_histogram(content, tmp_path / "b.png")
    plots.compare_runs([content, content], ["one", "two"], tmp_path / "c.svg")
    assert pyplot.get_fignums() == [] and {p.name for p in tmp_path.iterdir()} == {
        "a.png",
        "b.png",
        "c.svg",
    }
