"""Weights of the exits: golden numbers of the papers, and invalid arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.objectives import weights


def test_pabee_weights():
    np.testing.assert_allclose(weights.linear(4), [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(weights.linear(4) @ jnp.array([0.0, 0.0, 0.0, 1.0]), 0.4, rtol=1e-6)
    np.testing.assert_allclose(weights.linear(4) @ jnp.ones(4), 1.0, rtol=1e-6)


def test_layerskip_paper_form():
    wanted = [0, 0.0089, 0.0268, 0.0536, 0.0893, 0.1339, 0.1875, 0.5]
    np.testing.assert_allclose(weights.layerskip(8, 0.2), wanted, atol=5e-5)


def test_layerskip_torchtune_form():
    layers = np.arange(1, 9)
    wanted = [0.0278, 0.0556, 0.0833, 0.1111, 0.1389, 0.1667, 0.1944, 0.2222]
    np.testing.assert_allclose(weights.early_scaled(layers, 1.0), wanted, atol=5e-5)
    assert round(float(weights.early_scaled(layers, 0.2)[-1]), 4) == 0.5882
    assert round(float(weights.early_scaled(np.cumsum(layers), 1.0)[-1]), 4) == 0.3
    assert round(float(weights.early_scaled(np.cumsum(layers), 0.2)[-1]), 4) == 0.6818


def test_sdn_weights_grow_up_to_the_relative_cost():
    costs = [0.15, 0.5, 0.9, 1.0]
    grown = jax.jit(lambda p: weights.sdn(costs, p))
    np.testing.assert_allclose(grown(0.0), [0.01, 0.01, 0.01, 1.0], rtol=1e-6)
    np.testing.assert_allclose(grown(0.5), [0.085, 0.26, 0.46, 1.0], rtol=1e-6)
    np.testing.assert_allclose(grown(1.0), costs, rtol=1e-6)
    assert grown._cache_size() == 1


def test_msdnet_weights_are_a_sum_and_uniform_weights_a_mean():
    np.testing.assert_allclose(weights.ones(5), 5 * weights.uniform(5), rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        weights.uniform,
        weights.linear,
        weights.layerskip,
        lambda e: weights.early_scaled(np.sqrt(np.arange(1, e + 1)), 0.3),
    ],
    ids=["uniform", "linear", "layerskip", "early_scaled"],
)
@pytest.mark.parametrize("exits", [1, 2, 12])
def test_sum_is_one_and_the_last_weight_is_the_largest(make, exits):
    w = make(exits)
    assert w.shape == (exits,) and w.dtype == jnp.float32
    np.testing.assert_allclose(w.sum(), 1.0, rtol=1e-6)
    assert w[-1] > 0 and (w >= 0).all() and (w[-1] == w.max())


@pytest.mark.parametrize(
    "call, argument",
    [
        (lambda: weights.uniform(0), "exits"),
        (lambda: weights.layerskip(4, -1.0), "early_scale"),
        (lambda: weights.early_scaled([1.0, 0.0]), "curve"),
        (lambda: weights.early_scaled([]), "curve"),
        (lambda: weights.sdn([1e6, 2e6], 0.5), "relative_costs"),
        (lambda: weights.sdn([[1.0]], 0.5), "relative_costs"),
    ],
)
def test_invalid_arguments(call, argument):
    with pytest.raises(ValueError, match=f"^`{argument}`"):
        call()
