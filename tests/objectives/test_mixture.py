"""The expected prediction against a loop; its probabilities sum to 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.objectives.mixture import halting_mixture


@pytest.mark.parametrize("positions", [(), (2,)])
def test_matches_the_loop_and_sums_to_one(positions):
    logits = 3 * jax.random.normal(jax.random.key(0), (5, 4, *positions, 3))
    halting = jax.random.normal(jax.random.key(1), (5, 4)) - 1.5  # the last step has a large weight
    mixed = np.exp(np.asarray(halting_mixture(logits, halting), np.float64))
    rate, p = (
        1 / (1 + np.exp(-np.asarray(halting, np.float64))),
        np.asarray(jax.nn.softmax(logits), np.float64),
    )
    for b in range(4):
        wanted, survival = np.zeros((*positions, 3)), 1.0
        for n in range(5):
            share = survival if n == 4 else survival * rate[n, b]
            wanted += share * p[n, b]
            survival -= share
        np.testing.assert_allclose(mixed[b], wanted, rtol=1e-5)
    np.testing.assert_allclose(mixed.sum(axis=-1), 1.0, rtol=1e-5)


def test_golden_differs_from_the_released_code():
    """p = 0.2, 0.4, 0.2, 0.2; the released weight 1 - p_N of the last step makes a sum of 1.6."""
    halting = jax.scipy.special.logit(jnp.array([0.2, 0.5, 0.5, 0.9]))[:, None]
    logits = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]))[:, None]
    wanted = 0.2 * 0.5 + 0.4 * 0.9 + 0.2 * 0.2 + 0.2 * 0.4
    np.testing.assert_allclose(
        jnp.exp(halting_mixture(logits, halting))[0], [wanted, 1 - wanted], rtol=1e-5
    )


def test_invalid_arguments():
    with pytest.raises(ValueError, match="`logits`"):
        halting_mixture(jnp.zeros((3, 2, 4)), jnp.zeros((3, 1)))
