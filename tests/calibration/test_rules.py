"""Rules against loops, published values of the p-values, and how often guarantees are broken."""

from types import SimpleNamespace

import numpy as np
import pytest

from dynexit.calibration import rules
from dynexit.calibration.rules.bounds import hoeffding_bentkus, p_value
from dynexit.calibration.rules.risk_control import pareto_order

ROWS = 200


def table(right, right_full, cost, exit=None):
    """A curve of given scores `[K, M]`; by default the first point is full depth."""
    right, right_full = np.asarray(right, np.float32), np.asarray(right_full, np.float32)
    if exit is None:
        exit = np.where(np.arange(len(right))[:, None] == 0, 2, 0) + np.zeros_like(right, int)
    cost = np.asarray(cost, np.float64)
    return SimpleNamespace(
        right=right,
        right_full=right_full,
        agrees=right == right_full,
        exit=exit,
        exits=3,
        rows=right.shape[1],
        cost=cost,
        cost_full=float(cost.max()),
        accuracy=right.mean(1, dtype=np.float64),
        accuracy_full=float(right_full.mean(dtype=np.float64)),
        flips=(right < right_full).mean(1),
    )


def random_table(seed, points=60):
    draw = np.random.default_rng(seed)
    full = draw.random(ROWS) < 0.9
    harm = np.linspace(0, 0.3, points)[:, None]
    right = np.where(draw.random((points, ROWS)) < harm, ~full, full)
    right[0] = full
    return table(
        right, full, np.linspace(6, 1, points) + draw.random(points) * (np.arange(points) > 0)
    )


def test_accept_loss_and_budget_are_loops():
    found = random_table(0)
    for loss in (0.0, 0.01, 0.1):
        for flips in (None, 0.0, 0.02):
            k = rules.accept_loss(loss, flips).pick(found)
            allowed = [
                j
                for j in range(60)
                if found.accuracy[j] >= found.accuracy_full - loss - 1e-9
                and (flips is None or found.flips[j] <= flips + 1e-9)
            ]
            assert k in allowed and found.cost[k] == min(found.cost[j] for j in allowed)
    for share in (0.3, 0.5, 1.0):
        k = rules.budget(share).pick(found)
        allowed = [j for j in range(60) if found.cost[j] <= share * found.cost_full + 1e-9]
        assert found.accuracy[k] == max(found.accuracy[j] for j in allowed)
        assert found.cost[k] == min(
            found.cost[j] for j in allowed if found.accuracy[j] == found.accuracy[k]
        )


def test_equal_accuracies_up_to_rounding_are_accepted():
    """0.95 - 0.005 against 0.945: the loss is on the edge exactly."""
    full = np.arange(200) < 190
    found = table([full, np.arange(200) < 189], full, [2.0, 1.0])
    assert rules.accept_loss(0.005).pick(found) == 1
    assert rules.accept_loss(0.004).pick(found) == 0


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: rules.accept_loss(2.0), "`loss` must lie in 0..1"),
        (lambda: rules.accept_loss(0.1, -0.1), "`max_negative_flips` must lie in 0..1"),
        (lambda: rules.budget(0.0), "`share` must lie in 0..1, 0 excluded"),
        (lambda: rules.risk_control(0.0), "`alpha` must lie in 0..1, 0 excluded"),
        (lambda: rules.risk_control(0.1, 1.0), "`delta` must lie between 0 and 1"),
        (lambda: rules.risk_control(0.1, loss="nll"), "`loss` must be 'gap', 'disagreement'"),
        (lambda: rules.conformal_risk(1.5), "`alpha` must lie in 0..1"),
    ],
)
def test_refusals(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_a_budget_that_cannot_be_met_says_what_is_enough():
    found = table([[1, 1], [1, 0]], [1, 1], [10.0, 3.0])
    with pytest.raises(rules.NoPoint, match=r"cannot be met: the cheapest point costs 0.3000"):
        rules.budget(0.1).pick(found)
    assert rules.budget(0.3).pick(found) == 1


def test_points_without_full_depth_that_lose_too_much():
    found = table([[0, 0]], [1, 1], [1.0])
    with pytest.raises(rules.NoPoint, match="Full depth must be among the points"):
        rules.accept_loss(0.0).pick(found)


def test_published_p_values():
    wanted = {0.0: 7.06e-10, 0.02: 2.288e-5, 0.05: 0.02194, 0.07: 0.2527, 0.09: 0.8917}
    for mean, p in wanted.items():
        np.testing.assert_allclose(hoeffding_bentkus(mean, 200, 0.1), p, rtol=1e-3)
    np.testing.assert_allclose(p_value(np.arange(200) < 10, 0.1), 0.00807, rtol=1e-3)


def losing(rates, rows, draw):
    """Losses `[K, M]` of points whose risks are `rates`, each row losing at all points after one."""
    lost = draw.random(rows)[None] < np.asarray(rates)[:, None]
    return table(~lost, np.ones(rows, bool), np.linspace(6, 1, len(rates)))


def test_the_last_point_that_passes_is_taken_and_not_the_first_that_fails():
    rows = 1000
    lost = np.array([0, 30, 60, 95, 20])  # of 1000, against 0.08 at 0.1: the fourth fails
    right = np.arange(rows)[None] >= lost[:, None]
    found = table(right, np.ones(rows), [5.0, 4.0, 3.0, 2.0, 1.0])
    assert rules.risk_control(0.08, 0.1).pick(found) == 2
    # n = 1000: (60 + 1) / 1001 <= 0.08 < (95 + 1) / 1001, and what follows cannot come back
    assert rules.conformal_risk(0.08).pick(found) == 2


def test_conformal_values():
    picks = lambda rows, lost: rules.conformal_risk(0.1).pick(
        table([np.ones(rows), np.arange(rows) >= lost], np.ones(rows), [2.0, 1.0])
    )
    assert picks(100, 9) == 1 and picks(100, 10) == 0
    assert picks(9, 0) == 1
    assert picks(8, 0) == 0, "full depth, which needs no test"


@pytest.mark.parametrize("rates", [np.linspace(0, 0.3, 31), [0.0, 0.03, 0.06, 0.101, 0.2]])
def test_guarantees_hold_over_draws(rates):
    """P(risk > alpha) is at most delta by risk control, and the mean risk at most alpha by
    conformal risk control.
    """
    draw, alpha, delta = np.random.default_rng(0), 0.1, 0.1
    tested, conformal = [], []
    for _ in range(400):
        found = losing(rates, 200, draw)
        tested.append(rates[rules.risk_control(alpha, delta).pick(found)])
        conformal.append(rates[rules.conformal_risk(alpha).pick(found)])
    assert np.mean(np.array(tested) > alpha) <= delta + 3 * np.sqrt(delta * (1 - delta) / 400)
    assert 0 < np.mean(conformal) <= alpha and np.mean(tested) < np.mean(conformal)


def test_without_full_depth_a_risk_that_is_too_high_is_refused():
    found = table([np.arange(50) >= 25], np.ones(50), [1.0], exit=np.zeros((1, 50), int))
    for rule in (rules.risk_control(0.1), rules.conformal_risk(0.1)):
        with pytest.raises(rules.NoPoint, match="is not met by the first of the points"):
            rule.pick(found)
    sure = table([np.arange(50) >= 25], np.ones(50), [1.0], exit=np.full((1, 50), 2))
    assert rules.risk_control(0.1).pick(sure) == 0
    with pytest.raises(rules.NoPoint):
        rules.risk_control(0.1, loss="error").pick(sure)


def test_scores_without_a_bound_are_refused():
    found = table([[-3.0, 0.5]], [0.0, 1.0], [1.0])
    with pytest.raises(ValueError, match=r"`loss` 'gap' needs scores in 0..1"):
        rules.risk_control(0.1).pick(found)


def test_points_are_tested_from_full_depth_along_the_front():
    right = np.ones((5, 10))
    right[1, :3], right[2, :1], right[3, :2], right[4, :5] = 0, 0, 0, 0
    found = table(right, np.ones(10), [9.0, 2.0, 5.0, 6.0, 1.0])
    assert pareto_order(found).tolist() == [0, 2, 1, 4], "3 loses more than 2 and costs more"
