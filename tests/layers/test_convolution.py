"""The convolution and its gradients against XLA's own."""

import chex
import jax
import pytest

from dynexit.layers.convolution import _convolve, convolve


@pytest.mark.parametrize(
    "places,window",
    [
        ((9,), (3,)),
        ((9,), (5,)),
        ((5, 7), (3, 3)),
        ((2, 2), (3, 3)),
        ((6, 4), (1, 1)),
        ((4, 4), (1, 3)),
    ],
)
def test_value_and_gradients_are_those_of_xla(places, window):
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = (
        jax.random.normal(keys[0], (3, *places, 4)),
        jax.random.normal(keys[1], (*window, 4, 2)),
    )
    weight = jax.random.normal(keys[2], (3, *places, 2))
    gradient = lambda f: jax.value_and_grad(lambda x, k: (weight * f(x, k)).sum(), (0, 1))(
        x, kernel
    )
    chex.assert_trees_all_close(gradient(convolve), gradient(_convolve), rtol=1e-4, atol=1e-4)
