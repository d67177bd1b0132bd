"""Scores against sums written out in float64, against published figures, and at the extremes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.criteria import scores

CASES = [(5.0, 1.0, 0.0), (1.0, 0.9, 0.8), (10.0, 9.9, -5.0), (-3.0, 2.0, 2.0), (0.0, 0.0, 0.0)]
SCORES = [
    scores.max_probability,
    scores.entropy,
    scores.normalised_entropy,
    scores.margin,
    scores.energy,
]


def probabilities(z, t=1.0):
    e = [math.exp(x / t) for x in z]
    return [x / sum(e) for x in e]


def by_hand(score, z, t=1.0):
    p = sorted(probabilities(z, t), reverse=True)
    h = -sum(x * math.log(x) for x in p)
    return {
        scores.max_probability: p[0],
        scores.entropy: h,
        scores.normalised_entropy: h / math.log(len(z)),
        scores.margin: p[0] - p[1],
        scores.energy: -t * math.log(sum(math.exp(x / t) for x in z)),
    }[score]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("t", [1.0, 0.5, 3.0])
def test_scores_equal_sums_by_hand(score, t):
    expected = [by_hand(score, z, t) for z in CASES]
    np.testing.assert_allclose(score(jnp.array(CASES), t), expected, rtol=1e-5, atol=1e-6)
    per_row = score(jnp.array(CASES), jnp.array([t, 1.0, t, 1.0, t]))
    np.testing.assert_allclose(per_row[::2], expected[::2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(per_row[1], by_hand(score, CASES[1]), rtol=1e-5)


def test_energies_as_published():
    z = jnp.array(CASES[:3])
    np.testing.assert_allclose(-scores.energy(z), [5.02474, 2.00194, 10.64440], atol=1e-5)
    np.testing.assert_allclose(scores.max_probability(z), [0.97556, 0.36717, 0.52498], atol=1e-5)
    # The third is the most familiar by energy and only the second surest by probability.
    assert (
        int(jnp.argmin(scores.energy(z))) == 2 and int(jnp.argmax(scores.max_probability(z))) == 0
    )


def test_ln_of_the_probability_is_logit_plus_energy():
    z = jax.random.normal(jax.random.key(0), (64, 10)) * 4
    np.testing.assert_allclose(
        jnp.log(scores.max_probability(z)), z.max(-1) + scores.energy(z), atol=2e-6
    )


def test_entropy_at_the_extremes():
    z = jnp.array([[0.0, 0.0, 0.0], [100.0, 0.0, 0.0], [1e4, -1e4, 0.0], [0.0, 0.0, -jnp.inf]])
    h = scores.entropy(z)
    np.testing.assert_allclose(h, [math.log(3), 0.0, 0.0, math.log(2)], rtol=1e-6)
    assert h[1] == 0.0 and h[2] == 0.0
    np.testing.assert_allclose(scores.normalised_entropy(jnp.zeros(7)), 1.0, rtol=1e-6)


@pytest.mark.parametrize("score", SCORES)
def test_a_nan_stays_a_nan_and_touches_its_row_alone(score):
    z = jnp.array([[1.0, jnp.nan, 0.0], [5.0, 1.0, 0.0]])
    value = score(z)
    assert jnp.isnan(value[0])
    np.testing.assert_allclose(value[1], by_hand(score, CASES[0]), rtol=1e-5)


@pytest.mark.parametrize("score", SCORES)
def test_half_precision_is_computed_in_float32(score):
    z = jnp.array(CASES).astype(jnp.bfloat16)
    assert score(z).dtype == jnp.float32
    np.testing.assert_array_equal(score(z), score(z.astype(jnp.float32)))


@pytest.mark.parametrize("score", SCORES)
def test_leading_axes_are_kept(score):
    z = jax.random.normal(jax.random.key(1), (2, 3, 4))
    assert score(z).shape == (2, 3)
    np.testing.assert_allclose(score(z)[1, 2], score(z[1, 2]), rtol=1e-6)


def test_two_classes_are_ordered_alike_by_all_confidences():
    z = jax.random.normal(jax.random.key(2), (200, 2)) * 2
    order = np.argsort(np.abs(np.asarray(z[:, 0] - z[:, 1])))
    for score, sign in ((scores.max_probability, 1), (scores.margin, 1), (scores.entropy, -1)):
        assert (np.diff(sign * np.asarray(score(z))[order]) >= -1e-6).all()


def test_kl_by_hand():
    p, q = probabilities(CASES[0]), probabilities(CASES[1])
    expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    z, w = jnp.array(CASES[0]), jnp.array(CASES[1])
    np.testing.assert_allclose(scores.kl(z, w), expected, rtol=1e-5)
    np.testing.assert_allclose(scores.kl(z + 7.0, w - 2.0), expected, rtol=1e-5)
    assert abs(scores.kl(w, z) - expected) > 0.1  # the direction matters
    assert scores.kl(z, z) == 0.0


def test_kl_at_the_extremes():
    excluded, open_ = jnp.array([0.0, 0.0, -jnp.inf]), jnp.zeros(3)
    np.testing.assert_allclose(scores.kl(excluded, open_), math.log(3 / 2), rtol=1e-6)
    assert scores.kl(open_, excluded) == jnp.inf
    assert scores.kl(excluded, excluded) == 0.0
    nan = jnp.array([jnp.nan, 0.0, 0.0])
    assert jnp.isnan(scores.kl(nan, open_)) and jnp.isnan(scores.kl(open_, nan))
    assert jnp.isnan(scores.kl(jnp.array([200.0, 0.0, 0.0]), nan))


@pytest.mark.parametrize("score", [scores.margin, scores.normalised_entropy])
def test_one_class_is_refused(score):
    with pytest.raises(
        ValueError,
        match=r"`logits` must have at least 2 classes on the last axis, got shape \(4, 1\)",
    ):
        score(jnp.zeros((4, 1)))
