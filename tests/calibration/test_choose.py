"""Choosing an operating point: the rules against loops, the refusals, and a synthetic network end
to end.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit import criteria
from dynexit.calibration.candidates import threshold_candidates
from dynexit.calibration.choose import NoPoint, choose, refuse_same_split
from dynexit.calibration.curve import Predictions, curve
from dynexit.calibration.temperature import fit_temperature
from dynexit.core.types import Halted
from dynexit.engine.replay import replay

E, C = 5, 10
COSTS = np.array([1.0, 2.0, 3.5, 5.0, 6.0])


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
    return Predictions(split, logits, np.asarray(labels), f"digest of {seed}")


def points_of(known, **kwargs):
    return {"threshold": threshold_candidates(jax.nn.softmax(known.outputs).max(-1), **kwargs)}


def oracle_exits(logits, threshold):
    """A loop over rows and exits, with the strict comparison."""
    p = np.asarray(jax.nn.softmax(logits).max(-1))
    return np.array(
        [
            next((e for e in range(E - 1) if p[e, m] > threshold[e]), E - 1)
            for m in range(p.shape[1])
        ]
    )


def pick(known, points, **how):
    return choose(known, points, rule, predict, COSTS, replay, **how)


def test_curve_is_the_loop():
    known = synthetic(0, 200)
    points = points_of(known, shared=20)
    found = curve(known, points, rule, predict, COSTS, replay)
    answers = np.asarray(known.outputs.argmax(-1))
    full = answers[-1] == known.labels
    assert found.accuracy_full == full.mean()
    for k, threshold in enumerate(np.asarray(points["threshold"])):
        exit = oracle_exits(known.outputs, threshold)
        right = answers[exit, np.arange(200)] == known.labels
        np.testing.assert_allclose(found.accuracy[k], right.mean())
        np.testing.assert_allclose(found.cost[k], COSTS[exit].mean())
        np.testing.assert_allclose(found.mean_depth[k], (exit + 1).mean())
        np.testing.assert_allclose(found.exit_fraction[k], [(exit == e).mean() for e in range(E)])
        b, c = (full & ~right).sum(), (right & ~full).sum()
        np.testing.assert_allclose(
            found.standard_error[k], np.sqrt(b + c - (b - c) ** 2 / 200) / 200
        )
        np.testing.assert_allclose(found.flips[k], b / 200)
    assert len(set(found.mean_depth.tolist())) > 3


def test_curve_compiles_once_for_other_thresholds():
    known, traced = synthetic(1, 30), []

    def counted(criterion, outputs) -> Halted:
        traced.append(1)
        return replay(criterion, outputs)

    points = points_of(known, shared=6)
    first = curve(known, points, rule, predict, COSTS, counted)
    other = curve(known, jax.tree.map(lambda t: 0.9 * t, points), rule, predict, COSTS, counted)
    assert len(traced) == 1 and not np.array_equal(first.accuracy, other.accuracy)


def test_the_rules_are_the_loop():
    known = synthetic(2, 200)
    points = points_of(known, shared=20)
    found = curve(known, points, rule, predict, COSTS, replay)
    for loss in (0.0, 0.01, 0.1):
        choice = pick(known, points, accept_loss=loss)
        allowed = [
            k
            for k in range(len(found.cost))
            if found.accuracy[k] >= found.accuracy_full - loss - 1e-9
        ]
        assert choice.cost == min(found.cost[k] for k in allowed)
        assert choice.accuracy >= choice.accuracy_full - loss - 1e-9
    dear = {}
    for flips in (0.0, 0.01, 0.03, 1.0):
        choice = pick(known, points, accept_loss=0.05, max_negative_flips=flips)
        allowed = [
            k
            for k in range(len(found.cost))
            if found.accuracy[k] >= found.accuracy_full - 0.05 - 1e-9
            and found.flips[k] <= flips + 1e-9
        ]
        assert choice.cost == min(found.cost[k] for k in allowed)
        dear[flips] = choice.cost
    assert dear[0.0] > dear[0.01] > dear[0.03] > dear[1.0]
    assert (
        "turns at most 0.03 of the rows from right to wrong"
        in pick(known, points, accept_loss=0.05, max_negative_flips=0.03).accepted
    )
    for budget in (0.3, 0.5, 1.0):
        choice = pick(known, points, budget=budget)
        allowed = [k for k in range(len(found.cost)) if found.cost[k] <= budget * COSTS[-1] + 1e-9]
        assert choice.accuracy == max(found.accuracy[k] for k in allowed)
        assert choice.cost_fraction <= budget + 1e-9
        cheapest = min(found.cost[k] for k in allowed if found.accuracy[k] == choice.accuracy)
        assert choice.cost == cheapest
    assert (
        choice.split == "calibration" and choice.fingerprint == "digest of 2" and choice.rows == 200
    )
    assert choice.accepted.startswith("most accurate of 59 points that costs at most 1")
    np.testing.assert_array_equal(
        choice.operating_point["threshold"], points["threshold"][choice.index]
    )


def test_equal_accuracies_up_to_rounding_are_accepted():
    """0.95 - 0.005 against 0.945 and the like: the loss is on the edge exactly."""
    rows = 200
    labels = np.zeros(rows, np.int32)
    early = np.where(np.arange(rows) < 189, 5.0, -5.0)  # 0.945
    late = np.where(np.arange(rows) < 190, 5.0, -5.0)  # 0.95
    logits = jnp.stack(
        [jnp.stack([z, jnp.zeros(rows)], axis=1) for z in map(jnp.float32, (early, late))]
    )
    known = Predictions("calibration", logits, labels, "digest")
    points = {"threshold": jnp.array([[0.0], [jnp.inf]])}
    assert choose(known, points, rule, predict, [1.0, 2.0], replay, accept_loss=0.005).index == 0
    assert choose(known, points, rule, predict, [1.0, 2.0], replay, accept_loss=0.004).index == 1


def test_end_to_end_saves_depth_and_holds_on_new_rows():
    rows = 3000
    known, new = synthetic(3, rows), synthetic(4, rows, "test")
    per_exit = (np.asarray(known.outputs.argmax(-1)) == known.labels).mean(axis=1)
    assert (np.diff(per_exit) > 0).all()
    choice = pick(known, points_of(known), accept_loss=0.01)
    assert choice.accuracy >= choice.accuracy_full - 0.01 - 1e-9
    assert choice.cost_fraction < 0.8 and choice.mean_depth < 0.8 * E
    refuse_same_split(choice, new)
    again = curve(
        new, jax.tree.map(lambda a: a[None], choice.operating_point), rule, predict, COSTS, replay
    )
    np.testing.assert_allclose(again.exit_fraction[0], choice.exit_fraction, atol=3 / np.sqrt(rows))
    assert again.accuracy[0] >= again.accuracy_full - 0.01 - 3 * again.standard_error[0]


def test_temperatures_do_not_change_what_full_depth_answers():
    known = synthetic(5, 200)
    temperature = fit_temperature(known.outputs, known.labels)
    tempered = known.outputs / temperature[:, None, None]
    points = {
        "threshold": threshold_candidates(jax.nn.softmax(tempered).max(-1), shared=8),
        "temperature": jnp.tile(temperature, (47, 1)),
    }
    with_temperature = lambda operating_point: criteria.max_probability_above(
        operating_point["threshold"], operating_point["temperature"]
    )
    choice = choose(known, points, with_temperature, predict, COSTS, replay, accept_loss=0.0)
    assert choice.operating_point["temperature"].shape == (E,) and choice.cost_fraction < 1
    assert (
        choice.accuracy
        >= choice.accuracy_full
        == (np.asarray(known.outputs[-1].argmax(-1)) == known.labels).mean()
    )


KNOWN = synthetic(6, 40)
FULL = {"threshold": jnp.full((1, E - 1), jnp.inf)}


@pytest.mark.parametrize(
    "change, how, kind, text",
    [
        (
            {"split": "test"},
            {"budget": 0.5},
            ValueError,
            "the split that will be reported may not choose thresholds",
        ),
        ({"split": "train"}, {"budget": 0.5}, ValueError, "its confidences on them are too high"),
        ({"split": "tset"}, {"budget": 0.5}, ValueError, "`predictions` are of the 'tset' split"),
        (
            {},
            {},
            ValueError,
            "exactly one of `accept_loss` and `budget` must be given, got neither",
        ),
        ({}, {"budget": 0.5, "accept_loss": 0.1}, ValueError, "got both"),
        (
            {},
            {"budget": 0.5},
            ValueError,
            "`budget` of 0.5 of full depth's FLOPs cannot be met: the cheapest point costs 1.",
        ),
        ({}, {"budget": 0.0}, ValueError, "`budget` must lie in 0..1, 0 excluded"),
        ({}, {"accept_loss": 2.0}, ValueError, "`accept_loss` must lie in 0..1"),
        (
            {},
            {"accept_loss": 0.1, "max_negative_flips": -0.1},
            ValueError,
            "`max_negative_flips` must lie in 0..1",
        ),
        (
            {"labels": KNOWN.labels + 0.5},
            {"accept_loss": 0.1},
            TypeError,
            "`predictions.labels` must be integers, got float64",
        ),
        (
            {"labels": KNOWN.labels[:3]},
            {"accept_loss": 0.1},
            ValueError,
            "with E = 5 as `costs` and M = 3 as the labels",
        ),
        (
            {"outputs": KNOWN.outputs.at[2, 7, 1].set(jnp.nan)},
            {"accept_loss": 0.1},
            ValueError,
            "hold a NaN in 1 of 40 rows, first at exit 2",
        ),
    ],
)
def test_refusals(change, how, kind, text):
    with pytest.raises(kind) as error:
        pick(KNOWN._replace(**change), FULL, **how)
    assert text in str(error.value)


def test_points_with_a_nan_are_refused():
    with pytest.raises(ValueError, match=r"`points`\['threshold'\] must not hold a NaN"):
        pick(KNOWN, {"threshold": jnp.full((1, E - 1), jnp.nan)}, accept_loss=0.1)


def test_a_budget_is_a_fraction_of_the_full_cost_that_was_named_and_what_is_asked_for_is_enough():
    points = {"threshold": jnp.array([[0.0] * (E - 1), [jnp.inf] * (E - 1)])}
    full = 0.9 * COSTS[-1]
    with pytest.raises(
        NoPoint, match=r"`budget` of 0.01 of full depth's FLOPs cannot be met"
    ) as error:
        pick(KNOWN, points, budget=0.01, full_cost=full)
    least = float(str(error.value).split("costs ")[1].split(". Ask")[0])
    assert least == pytest.approx(COSTS[0] / full, abs=1e-4)
    assert pick(KNOWN, points, budget=least, full_cost=full).index == 0


def test_refuses_candidates_without_full_depth_that_lose_too_much():
    first_exit = {"threshold": jnp.full((1, E - 1), -1.0)}
    with pytest.raises(ValueError, match="Full depth must be among the candidates"):
        pick(KNOWN, first_exit, accept_loss=0.0)


@pytest.mark.parametrize("costs", [COSTS[::-1], [0.0, 1, 2, 3, 4], COSTS[:3]])
def test_refuses_wrong_costs(costs):
    with pytest.raises(ValueError, match="`costs`"):
        choose(KNOWN, FULL, rule, predict, costs, replay, accept_loss=0.0)


def test_refuses_points_without_a_common_leading_axis():
    with pytest.raises(ValueError, match="`points` must have leaves"):
        pick(KNOWN, {"threshold": jnp.float32(0.5)}, accept_loss=0.0)


def test_a_report_on_the_choosing_rows_is_refused():
    choice = pick(KNOWN, FULL, accept_loss=0.0)
    with pytest.raises(ValueError, match="on which this operating point was chosen"):
        refuse_same_split(choice, KNOWN._replace(fingerprint="other"))
    with pytest.raises(ValueError, match="hold the very data on which"):
        refuse_same_split(choice, KNOWN._replace(split="test"))
    refuse_same_split(choice, KNOWN._replace(split="test", fingerprint="other"))
