"""The curve against a loop over rows, choosing from it, what is refused, and a synthetic network end
to end.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit import criteria
from dynexit.calibration import rules
from dynexit.calibration.candidates import levels, threshold_candidates, with_full_depth
from dynexit.calibration.choose import choose, refuse_same_split
from dynexit.calibration.curve import curve
from dynexit.calibration.records import records_of
from dynexit.calibration.temperature import fit_temperature
from dynexit.core.labels import IGNORED

E, C = 5, 10
COSTS = np.array([1.0, 2.0, 3.5, 5.0, 6.0])


class Known(NamedTuple):
    split: str
    logits: Any
    labels: Any
    fingerprint: str


def rule(operating_point):
    return criteria.max_probability_above(operating_point["threshold"])


def predict(output):
    return jnp.argmax(output, axis=-1).astype(jnp.int32)


def synthetic(seed, rows, split="calibration"):
    """A network that grows surer with depth, at a pace that differs from row to row; accuracy rises
    with the exit.
    """
    keys = jax.random.split(jax.random.key(seed), 3)
    labels = jax.random.randint(keys[0], (rows,), 0, C)
    pace = jax.random.uniform(keys[1], (rows,), minval=0.5, maxval=3.0)
    signal = jnp.arange(1.0, E + 1)[:, None] * pace[None]
    noise = 1.5 * jax.random.normal(keys[2], (E, rows, C))
    logits = signal[..., None] * jax.nn.one_hot(labels, C)[None] + noise
    return Known(split, logits, np.asarray(labels), f"digest of {seed}")


def recorded(known, criterion=None):
    criterion = rule({"threshold": np.inf}) if criterion is None else criterion
    return records_of(
        known.logits,
        known.labels,
        criterion,
        predict,
        split=known.split,
        fingerprint=known.fingerprint,
    )


def points_of(known, **kwargs):
    return {"threshold": threshold_candidates(jax.nn.softmax(known.logits).max(-1), **kwargs)}


def oracle_exits(logits, threshold):
    """A loop over rows and exits, with the strict comparison."""
    p = np.asarray(jax.nn.softmax(logits).max(-1))
    return np.array(
        [
            next((e for e in range(E - 1) if p[e, m] > threshold[e]), E - 1)
            for m in range(p.shape[1])
        ]
    )


def drawn(known, points, costs=COSTS, **how):
    return curve(recorded(known), points, rule, costs, **how)


def test_curve_is_the_loop():
    known = synthetic(0, 200)
    points = points_of(known, shared=20)
    found = drawn(known, points)
    answers = np.asarray(known.logits.argmax(-1))
    full = answers[-1] == known.labels
    log_p = np.asarray(jax.nn.log_softmax(known.logits))
    assert found.accuracy_full == full.mean() and found.rows == 200
    for k, threshold in enumerate(points["threshold"]):
        exit, rows = oracle_exits(known.logits, threshold), np.arange(200)
        right = answers[exit, rows] == known.labels
        np.testing.assert_array_equal(found.exit[k], exit)
        np.testing.assert_array_equal(found.agrees[k], answers[exit, rows] == answers[-1])
        np.testing.assert_allclose(found.accuracy[k], right.mean())
        np.testing.assert_allclose(found.cost[k], COSTS[exit].mean())
        np.testing.assert_allclose(
            found.loss[k], -log_p[exit, rows, known.labels].mean(), rtol=1e-5
        )
        np.testing.assert_allclose(found.mean_depth[k], (exit + 1).mean())
        np.testing.assert_allclose(found.exit_fraction[k], [(exit == e).mean() for e in range(E)])
        b, c = (full & ~right).sum(), (right & ~full).sum()
        np.testing.assert_allclose(
            found.standard_error[k], np.sqrt(b + c - (b - c) ** 2 / 200) / 200
        )
        np.testing.assert_allclose(found.flips[k], b / 200)
    assert len(set(found.mean_depth.tolist())) > 3


def test_other_thresholds_compile_nothing():
    known, traced = recorded(synthetic(1, 30)), []

    def counted(point):
        traced.append(1)
        return rule(point)

    points = points_of(synthetic(1, 30), shared=6)
    first = curve(known, points, counted, COSTS)
    before = len(traced)
    other = curve(known, jax.tree.map(lambda t: 0.9 * t, points), counted, COSTS)
    assert len(traced) == before + 1, "the criterion of all points is made once, to compare scores"
    assert not np.array_equal(first.accuracy, other.accuracy)


def test_a_choice_says_what_was_taken_and_why():
    known = synthetic(2, 200)
    points = points_of(known, shared=20)
    found = drawn(known, points)
    choice = choose(found, rules.budget(1.0))
    assert choice.split == "calibration" and choice.fingerprint == "digest of 2"
    assert choice.rows == 200 and choice.guarantee.startswith("none on new rows")
    assert choice.accepted == (
        "most accurate that costs at most 1 of full depth's FLOPs, of 59 points"
    )
    np.testing.assert_array_equal(
        choice.operating_point["threshold"], points["threshold"][choice.index]
    )
    np.testing.assert_allclose(choice.cost, found.cost[choice.index])


def test_end_to_end_saves_depth_and_holds_on_new_rows():
    rows = 3000
    known, new = synthetic(3, rows), synthetic(4, rows, "test")
    per_exit = (np.asarray(known.logits.argmax(-1)) == known.labels).mean(axis=1)
    assert (np.diff(per_exit) > 0).all()
    choice = choose(drawn(known, points_of(known)), rules.accept_loss(0.01))
    assert choice.accuracy >= choice.accuracy_full - 0.01 - 1e-9
    assert choice.cost_fraction < 0.8 and choice.mean_depth < 0.8 * E
    refuse_same_split(choice, new.split, new.fingerprint)
    again = drawn(new, jax.tree.map(lambda a: a[None], choice.operating_point))
    np.testing.assert_allclose(again.exit_fraction[0], choice.exit_fraction, atol=3 / np.sqrt(rows))
    assert again.accuracy[0] >= again.accuracy_full - 0.01 - 3 * again.standard_error[0]


def with_temperature(operating_point):
    return criteria.max_probability_above(
        operating_point["threshold"], operating_point["temperature"]
    )


def test_temperatures_do_not_change_what_full_depth_answers():
    known = synthetic(5, 200)
    temperature = fit_temperature(known.logits, known.labels)
    tempered = known.logits / temperature[:, None, None]
    points = {
        "threshold": threshold_candidates(jax.nn.softmax(tempered).max(-1), shared=8),
        "temperature": np.tile(temperature, (47, 1)),
    }
    one = with_temperature(jax.tree.map(lambda a: a[0], points))
    choice = choose(
        curve(recorded(known, one), points, with_temperature, COSTS), rules.accept_loss(0.0)
    )
    assert choice.operating_point["temperature"].shape == (E,) and choice.cost_fraction < 1
    assert (
        choice.accuracy
        >= choice.accuracy_full
        == (np.asarray(known.logits[-1].argmax(-1)) == known.labels).mean()
    )


def test_points_whose_scores_differ_are_refused():
    points = {"threshold": np.ones((2, E - 1)), "temperature": np.array([[1.0] * E, [2.0] * E])}
    one = with_temperature(jax.tree.map(lambda a: a[0], points))
    with pytest.raises(ValueError, match="`points` must have criteria of one score"):
        curve(recorded(KNOWN, one), points, with_temperature, COSTS)


def test_rows_without_a_label_count_nowhere():
    known = synthetic(7, 90)
    labels = np.where(np.arange(90) % 3 == 0, IGNORED, known.labels)
    some, kept = known._replace(labels=labels), np.arange(90) % 3 != 0
    fewer = known._replace(logits=known.logits[:, kept], labels=known.labels[kept])
    points = points_of(fewer, shared=8)
    found, wanted = drawn(some, points), drawn(fewer, points)
    assert found.rows == wanted.rows == 60 and found.accuracy_full == wanted.accuracy_full
    for name in ("accuracy", "cost", "standard_error", "flips", "loss", "exit_fraction"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-6)
    with pytest.raises(ValueError, match="`records` hold no row with a label"):
        drawn(known._replace(labels=np.full(90, IGNORED)), points)


def test_a_row_with_a_nan_does_not_exit_there_as_in_a_run():
    known = synthetic(8, 40)
    spoilt = known._replace(logits=known.logits.at[0, :10, 3].set(jnp.nan))
    found = drawn(spoilt, {"threshold": np.full((1, E - 1), -1.0)})
    np.testing.assert_array_equal(found.exit[0], [1] * 10 + [0] * 30)


def test_real_labels_need_a_score_of_their_own():
    known = synthetic(9, 20)
    real = known.labels.astype(np.float32) / 3
    with pytest.raises(TypeError, match="`labels` must be integers, got float32"):
        recorded(known._replace(labels=real))
    value = lambda output: output.mean(-1)
    records = records_of(
        known.logits,
        np.where(np.arange(20) < 5, np.float32(np.nan), real),
        rule({"threshold": np.inf}),
        value,
        lambda prediction, labels: -jnp.abs(prediction - labels),
    )
    assert records.losses is None and records.counts.sum() == 15
    found = curve(records, FULL, rule, COSTS)
    np.testing.assert_allclose(
        found.accuracy_full, -np.abs(known.logits[-1, 5:].mean(-1) - real[5:]).mean(), rtol=1e-5
    )
    assert choose(found, rules.accept_loss(0.1)).cost_fraction == 1


KNOWN = synthetic(6, 40)
FULL = {"threshold": np.full((1, E - 1), np.inf, np.float32)}


@pytest.mark.parametrize(
    "split, text",
    [
        ("test", "the reported split may not choose thresholds"),
        ("train", "its confidences on them are too high"),
        ("tset", "`curve` is of the 'tset' split"),
    ],
)
def test_other_splits_are_refused(split, text):
    with pytest.raises(ValueError, match=text):
        choose(drawn(KNOWN._replace(split=split), FULL), rules.budget(1.0))


def test_what_is_no_rule_is_refused():
    with pytest.raises(TypeError, match=r"`rule` must be one of dx.calibration.rules"):
        choose(drawn(KNOWN, FULL), 0.005)


def test_labels_for_another_number_of_rows_are_refused():
    with pytest.raises(ValueError, match=r"`outputs` must have shape .* with M = 3 as the labels"):
        recorded(KNOWN._replace(labels=KNOWN.labels[:3]))


@pytest.mark.parametrize("costs", [COSTS[::-1], [0.0, 1, 2, 3, 4]])
def test_refuses_wrong_costs(costs):
    with pytest.raises(ValueError, match="`costs`"):
        drawn(KNOWN, FULL, costs)
    with pytest.raises(ValueError, match="`records` must be of E = 3 exits"):
        drawn(KNOWN, FULL, COSTS[:3])


def test_refuses_points_without_a_common_leading_axis():
    with pytest.raises(ValueError, match="`points` must have leaves"):
        drawn(KNOWN, {"threshold": np.float32(0.5)})


def test_full_depth_is_put_among_the_candidates():
    full = {"t": np.float32(1.0)}
    assert with_full_depth({"t": np.array([0.5, 0.9])}, full)["t"].tolist() == [0.5, 0.9, 1.0]
    assert with_full_depth({"t": np.array([0.5, 1.0])}, full)["t"].tolist() == [0.5, 1.0]
    with pytest.raises(ValueError, match=r"`points`\['t'\] must not hold a NaN"):
        with_full_depth({"t": np.array([np.nan])}, full)
    with pytest.raises(ValueError, match="`points` must have the structure of full depth"):
        with_full_depth({"t": np.array([[0.5]])}, full)
    with pytest.raises(ValueError, match=r"`thresholds` must have shape \[K\] and lie in 0..1"):
        levels([0.5, 1.5], full=1.0, low=0.0, high=1.0)


def test_a_report_on_the_choosing_rows_is_refused():
    choice = choose(drawn(KNOWN, FULL), rules.accept_loss(0.0))
    with pytest.raises(ValueError, match="on which this operating point was chosen"):
        refuse_same_split(choice, "calibration", "other")
    with pytest.raises(ValueError, match="of the data on which"):
        refuse_same_split(choice, "test", KNOWN.fingerprint)
    refuse_same_split(choice, "test", "other")
