"""Thresholds for wanted fractions: golden exits, ties, quotas of zero, and a loop over rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit import criteria
from dynexit.calibration.candidates import (
    geometric_fractions,
    msdnet_thresholds,
    quotas,
    shared_thresholds,
    threshold_candidates,
)
from dynexit.engine.replay import replay

GOLDEN = jnp.array([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0.95, 0.6, 0.9, 0.85, 0.7, 0.65], [1.0] * 6])


def leaving(confidence, thresholds):
    """The exit of each row, 1..E, by a loop."""
    out = []
    for row in np.asarray(confidence).T:
        e = next((e for e, t in enumerate(np.asarray(thresholds)) if row[e] > t), len(row) - 1)
        out.append(e + 1)
    return out


def oracle_thresholds(confidence, fractions):
    """The released algorithm: sort what remains, take the m-th, remove all rows at or above; for
    `>=`.
    """
    confidence = np.asarray(confidence)
    rows, remaining, thresholds = confidence.shape[1], list(range(confidence.shape[1])), []
    for e in range(len(confidence) - 1):
        m = int(np.floor(rows * fractions[e] + 1e-9))
        ranked = sorted((confidence[e, i] for i in remaining), reverse=True)
        t = np.inf if m == 0 else ranked[m - 1] if m <= len(ranked) else -np.inf
        remaining = [i for i in remaining if not confidence[e, i] >= t]
        thresholds.append(t)
    return thresholds


@pytest.mark.parametrize(
    "fractions, thresholds, exits",
    [
        ((4 / 7, 2 / 7, 1 / 7), (0.7, 0.85), [1, 1, 1, 2, 3, 3]),
        ((1 / 3, 1 / 3, 1 / 3), (0.8, 0.85), [1, 1, 2, 2, 3, 3]),
        ((1 / 7, 2 / 7, 4 / 7), (np.inf, 0.95), [2, 3, 3, 3, 3, 3]),
    ],
)
def test_golden_thresholds_and_exits(fractions, thresholds, exits):
    found = msdnet_thresholds(GOLDEN, fractions)
    np.testing.assert_allclose(found, thresholds, rtol=2e-6)
    assert leaving(GOLDEN, found) == exits  # with `>`
    rounded = GOLDEN * (1 - 5e-7)  # the scores as another program may round them
    assert leaving(rounded, found) == exits


def test_ties_leave_together():
    confidence = jnp.array([[0.9, 0.9, 0.9, 0.1], [1.0] * 4])
    assert leaving(confidence, msdnet_thresholds(confidence, [0.25, 0.75])) == [1, 1, 1, 2]


@pytest.mark.parametrize("top", [1.0, 0.0, -0.5])
def test_a_tie_at_the_top_is_released(top):
    """Probabilities round to 1; scores such as a negative entropy end at 0, whose neighbour is
    flushed to 0.
    """
    confidence = jnp.array([[top, top, top - 0.1, top - 0.2], [9.0] * 4])
    threshold = msdnet_thresholds(confidence, [0.25, 0.75])
    assert jax.jit(lambda s, t: s > t)(confidence[0], threshold[0]).tolist() == [
        True,
        True,
        False,
        False,
    ]


def test_many_points_at_once_are_the_loop():
    confidence = jnp.round(jax.random.uniform(jax.random.key(0), (5, 53)), 2)  # rounded, for ties
    fractions = geometric_fractions([0.05, 0.4, 1.0, 1.5, 4.0], 5)
    found = msdnet_thresholds(confidence, fractions)
    assert found.shape == (5, 4)
    for p, t in zip(fractions, found, strict=True):
        wanted = oracle_thresholds(confidence, p)
        np.testing.assert_allclose(t, wanted, rtol=2e-6)
        assert leaving(confidence, t) == leaving(
            confidence, np.nextafter(np.float32(wanted), np.float32(-np.inf))
        )


def test_quotas_are_reproduced_without_ties_and_hold_on_new_rows():
    exits, rows = 4, 2000
    draw = lambda seed: jax.random.uniform(jax.random.key(seed), (exits, rows))
    fractions = geometric_fractions([0.7], exits)[0]
    threshold = msdnet_thresholds(draw(0), fractions)
    counts = np.bincount(leaving(draw(0), threshold), minlength=exits + 1)[1:]
    assert counts[:-1].tolist() == quotas(fractions, rows).tolist()
    new = np.bincount(leaving(draw(1), threshold), minlength=exits + 1)[1:] / rows
    np.testing.assert_allclose(new, fractions, atol=3 / np.sqrt(rows))


def test_extremes_of_the_ratio_and_of_the_exits():
    confidence = jax.random.uniform(jax.random.key(3), (3, 20))
    assert leaving(confidence, msdnet_thresholds(confidence, [1.0, 0.0, 0.0])) == [1] * 20
    assert (
        leaving(confidence, msdnet_thresholds(confidence, geometric_fractions([1e6], 3)[0]))
        == [3] * 20
    )
    assert msdnet_thresholds(confidence[:1], [1.0]).shape == (0,)
    assert shared_thresholds(confidence[:1], 4).shape == (4, 0)


def test_more_wanted_than_ties_left():
    confidence = jnp.array([[0.9] * 4, [0.5, 0.6, 0.7, 0.8], [1.0] * 4])
    found = msdnet_thresholds(confidence, [0.5, 0.25, 0.25])
    assert found[1] == -jnp.inf and leaving(confidence, found) == [1] * 4


def test_a_nan_never_leaves():
    confidence = jnp.array([[jnp.nan, 0.9, 0.8, 0.1], [0.2, 0.3, 0.4, 0.5]])
    assert leaving(confidence, msdnet_thresholds(confidence, [0.5, 0.5])) == [2, 1, 1, 2]


def test_fractions_are_geometric():
    p = geometric_fractions([0.5, 1.0, 1.95], 3)
    np.testing.assert_allclose(p[0], [4 / 7, 2 / 7, 1 / 7])
    np.testing.assert_allclose(p[1], 1 / 3)
    np.testing.assert_allclose(p[2, 1:] / p[2, :-1], 1.95)
    assert np.isfinite(geometric_fractions([1e-9, 1e9], 100)).all()


def test_quotas_do_not_lose_a_row_to_rounding():
    assert 100 * 0.29 < 29
    assert quotas([0.29, 0.71], 100).tolist() == [29]
    assert quotas([[0.5, 0.5], [1 / 3, 2 / 3]], 5).tolist() == [[2], [1]]


def test_shared_thresholds_span_from_nobody_held_to_full_depth():
    confidence = jax.random.uniform(jax.random.key(4), (4, 200))
    levels = shared_thresholds(confidence, 11)
    assert levels.shape == (11, 3) and (levels[-1] == jnp.inf).all()
    assert (levels == levels[:, :1]).all() and (jnp.diff(levels[:, 0]) > 0).all()
    depths = [np.mean(leaving(confidence, t)) for t in levels]
    assert depths == sorted(depths) and depths[0] == 1 and depths[-1] == 4


def test_candidates_hold_full_depth_and_run_on_the_engines_rule():
    logits = (
        jax.random.normal(jax.random.key(5), (3, 40, 4)) * jnp.array([1.0, 2.0, 4.0])[:, None, None]
    )
    confidence = jax.nn.softmax(logits).max(-1)
    points = threshold_candidates(confidence, ratios=[0.5, 1.5], shared=3)
    assert points.shape == (5, 2)
    assert (replay(criteria.max_probability_above(points[-1]), logits).exit == 2).all()
    for threshold in points:
        exit = replay(criteria.max_probability_above(threshold), logits).exit
        assert (exit + 1).tolist() == leaving(confidence, threshold)


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: msdnet_thresholds(GOLDEN[0], [1.0]), "`confidence` must have shape [E, M]"),
        (
            lambda: msdnet_thresholds(GOLDEN, [0.5, 0.5]),
            "`fractions` must have shape [E] or [K, E] with E = 3, got (2,)",
        ),
        (
            lambda: msdnet_thresholds(GOLDEN, [0.5, 0.1, 0.1]),
            "`fractions` must be at least 0 and sum to 1",
        ),
        (lambda: quotas([1.5, -0.5], 4), "`fractions` must be at least 0 and sum to 1"),
        (lambda: geometric_fractions([0.0], 3), "`ratios` must be finite numbers above 0"),
        (lambda: shared_thresholds(GOLDEN, 0), "`count` must be at least 1, got 0"),
    ],
)
def test_refusals(call, text):
    with pytest.raises(ValueError) as error:
        call()
    assert text in str(error.value)


def test_candidates_run_under_the_debugging_modes():
    with jax.debug_nans(True), jax.debug_infs(True):
        assert shared_thresholds(np.array([[0.2, 0.4], [0.9, 0.9]]), 3)[-1, 0] == np.inf
        points = {"threshold": threshold_candidates(np.random.default_rng(0).random((3, 40)))}
        logits = jax.random.normal(jax.random.key(0), (3, 40, 4))
        rule = lambda point: criteria.max_probability_above(point["threshold"])
        one = rule({"threshold": np.inf})
        labels = np.arange(40) % 4
        records = dx.calibration.records_of(logits, labels, one, lambda z: z.argmax(-1))
        found = dx.calibration.curve(records, points, rule, [1.0, 2.0, 3.0])
        dx.calibration.choose(found, dx.calibration.rules.accept_loss(0.0))
        dx.calibration.fit_temperature(logits, labels)
