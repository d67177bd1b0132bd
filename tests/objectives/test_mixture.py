"""The answer in expectation against a loop, and its mass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.objectives.mixture import halting_mixture


@pytest.mark.parametrize("places", [(), (2,)])
def test_it_is_the_loop_and_a_distribution(places):
    logits = 3 * jax.random.normal(jax.random.key(0), (5, 4, *places, 3))
    halting = jax.random.normal(jax.random.key(1), (5, 4)) - 1.5  # much is left for the last step
    mixed = np.exp(np.asarray(halting_mixture(logits, halting), np.float64))
    rate, p = (
        1 / (1 + np.exp(-np.asarray(halting, np.float64))),
        np.asarray(jax.nn.softmax(logits), np.float64),
    )
    for b in range(4):
        wanted, survival = np.zeros((*places, 3)), 1.0
        for n in range(5):
            share = survival if n == 4 else survival * rate[n, b]
            wanted += share * p[n, b]
            survival -= share
        np.testing.assert_allclose(mixed[b], wanted, rtol=1e-5)
    np.testing.assert_allclose(mixed.sum(axis=-1), 1.0, rtol=1e-5)


def test_weights_given_by_the_released_code_would_show():
    """p = 0.2, 0.4, 0.2, 0.2; a last weight of 1 - p_N gives a mass of 1.6."""
    halting = jax.scipy.special.logit(jnp.array([0.2, 0.5, 0.5, 0.9]))[:, None]
    logits = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]))[:, None]
    wanted = 0.2 * 0.5 + 0.4 * 0.9 + 0.2 * 0.2 + 0.2 * 0.4
    np.testing.assert_allclose(
        jnp.exp(halting_mixture(logits, halting))[0], [wanted, 1 - wanted], rtol=1e-5
    )


def test_refusals():
    with pytest.raises(ValueError) as error:
        halting_mixture(jnp.zeros((3, 2, 4)), jnp.zeros((3, 1)))
    assert (
        str(error.value)
        == "`logits` must have shape [N, B, ..., C] for `halt_logits` [N, B], got (3, 2, 4) and (3, 1)"
    )
