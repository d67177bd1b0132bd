"""Stablemax against its definition, one term at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.core.labels import IGNORED
from dynexit.objectives.stablemax import log_stablemax, stablemax_cross_entropy


def s(z):
    return z + 1 if z >= 0 else 1 / (1 - z)


def by_hand(row):
    total = sum(s(float(z)) for z in row)
    return [np.log(s(float(z)) / total) for z in row]


def test_golden_values():
    assert [s(0.0), s(1.0), s(-1.0)] == [1.0, 2.0, 0.5]
    np.testing.assert_allclose(
        log_stablemax(jnp.array([0.0, 1.0, -1.0])), np.log([2 / 7, 4 / 7, 1 / 7]), rtol=1e-6
    )


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e6])
def test_log_probabilities_match_the_definition_and_sum_to_one(scale):
    logits = scale * jax.random.normal(jax.random.key(0), (7, 5))
    found = np.asarray(log_stablemax(logits))
    wanted = [by_hand(np.asarray(row, np.float64)) for row in logits]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)  # float32 against float64
    np.testing.assert_allclose(np.exp(found.astype(np.float64)).sum(-1), 1.0, rtol=1e-5)


def test_gradients_do_not_vanish_where_the_softmax_saturates():
    logits = jnp.array([[[-300.0, 200.0, 0.0]]])
    gradient = jax.grad(lambda z: stablemax_cross_entropy(z, jnp.array([0]))[0, 0])(logits)[0, 0]
    # d(-ln p_0) is -s'(z)/s(z) + s'(z)/total for the label and s'(z)/total for other classes,
    # where s' is 1/(1 - z)^2 below 0 and 1 above.
    total = 1 / 301 + 201 + 1
    wanted = [-1 / 301 + 1 / 301**2 / total, 1 / total, 1 / total]
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4)


def test_the_loss_is_the_mean_over_positions_that_are_not_ignored():
    logits = 3 * jax.random.normal(jax.random.key(1), (2, 3, 4, 5))
    labels = np.array([[0, 4, IGNORED, 2], [1, 1, 1, 1], [IGNORED] * 4])
    found = stablemax_cross_entropy(logits, jnp.asarray(labels))
    for e in range(2):
        for b in range(3):
            terms = [
                -by_hand(np.asarray(logits[e, b, p]))[c]
                for p, c in enumerate(labels[b])
                if c != IGNORED
            ]
            np.testing.assert_allclose(found[e, b], np.mean(terms) if terms else 0.0, rtol=1e-5)


def test_half_precision_is_computed_in_float32():
    logits = jax.random.normal(jax.random.key(2), (1, 4, 3)).astype(jnp.bfloat16)
    labels = jnp.array([0, 1, 2, 0])
    found = stablemax_cross_entropy(logits, labels)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(
        found, stablemax_cross_entropy(logits.astype(jnp.float32), labels), rtol=1e-6
    )


def test_invalid_arguments():
    with pytest.raises(TypeError, match=r"^`logits`"):
        stablemax_cross_entropy(jnp.zeros((1, 2, 3), jnp.int32), jnp.zeros(2, jnp.int32))
    with pytest.raises(ValueError, match=r"^`labels`"):
        stablemax_cross_entropy(jnp.zeros((1, 2, 3)), jnp.zeros(3, jnp.int32))
