"""Linen modules as pure functions, the norms and the check of inputs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.layers.inputs import check_input
from dynexit.layers.linen import Apply, apply_linen, block_names, initial_stack
from dynexit.layers.norms import LayerNorm, RMSNorm

ROWS = 4


def test_names_sort_in_order_of_depth():
    assert block_names(3) == ("block00", "block01", "block02")
    assert list(block_names(100)) == sorted(block_names(100))


def test_norm_is_computed_in_float32():
    """Around a mean of 300, bfloat16 steps are 2 apart: a variance taken there would be far off."""
    x = (300.0 + 8.0 * jax.random.normal(jax.random.key(2), (ROWS, 64))).astype(jnp.bfloat16)
    module = LayerNorm()
    found = module.apply(module.init(jax.random.key(0), x), x)
    exact = x.astype(jnp.float32)
    exact = (exact - exact.mean(axis=1, keepdims=True)) / exact.std(axis=1, keepdims=True)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.02)


def test_equal_modules_are_equal_functions():
    one, other = Apply(LayerNorm(), "norm"), Apply(LayerNorm(), "norm")
    assert one == other and hash(one) == hash(other)
    assert Apply(LayerNorm(), "norm") != Apply(LayerNorm(), "other")


def test_a_stack_is_drawn_block_by_block():
    keys = jax.random.split(jax.random.key(3), 4)
    stacked = initial_stack(
        nn.Dense(2), jax.random.key(3), jax.ShapeDtypeStruct((1, 5), jnp.float32), 4
    )
    for k in range(4):
        alone = nn.Dense(2).init(keys[k], jnp.zeros((1, 5)))["params"]
        np.testing.assert_allclose(stacked["kernel"][k], alone["kernel"], rtol=1e-6)


@pytest.mark.parametrize(
    "inputs, error, words",
    [
        (jnp.ones((2, 3)), ValueError, "images of shape [B, 4, any, 1], got [2, 3]"),
        (jnp.ones((4, 4, 1)), ValueError, "images of shape [B, 4, any, 1], got [4, 4, 1]"),
        (jnp.ones((2, 4, 4, 3)), ValueError, "images of shape [B, 4, any, 1], got [2, 4, 4, 3]"),
        (np.ones((2, 4, 4, 1), np.uint8), TypeError, "floating point, got uint8; scale them"),
    ],
)
def test_wrong_inputs_are_named(inputs, error, words):
    with pytest.raises(error) as caught:
        check_input(inputs, (4, None, 1), "images")
    assert str(caught.value).startswith(f"`inputs` must be {words}")


def test_the_mean_square_is_computed_in_float32():
    x = jnp.full((2, 64), 300.0, jnp.bfloat16)
    found = RMSNorm(scaled=False).apply({}, x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), 1.0, atol=0.01)


def test_a_module_that_draws_random_numbers_is_refused():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dropout(0.5, deterministic=False)(x)

    with pytest.raises(ValueError, match=r"^`module` \(Noisy\) must not draw random numbers"):
        apply_linen(Noisy(), {}, jnp.ones((2, 3)))
