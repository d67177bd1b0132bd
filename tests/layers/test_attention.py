"""Attention against a loop over heads and places, its masks, and the projections."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.layers.attention import Heads, SelfAttention, attend, attention_mask
from dynexit.layers.dense import Dense

B, L, HEADS, SIZE = 2, 5, 2, 3
Q, K, V = jax.random.normal(jax.random.key(0), (3, B, L, HEADS, SIZE))
REAL = np.array([[True, True, True, False, False], [True, False, True, True, True]])


def by_loop(mask):
    """One query of one head at a time, over the keys that it attends to."""
    found = np.zeros((B, L, HEADS, SIZE))
    for b, i, h in np.ndindex(B, L, HEADS):
        seen = np.flatnonzero(np.broadcast_to(mask, (B, L, L))[b, i])
        weights = np.exp(np.asarray(K)[b, seen, h] @ np.asarray(Q)[b, i, h] / SIZE**0.5)
        found[b, i, h] = weights @ np.asarray(V)[b, seen, h] / weights.sum()
    return found


@pytest.mark.parametrize("real, causal", [(None, False), (None, True), (REAL, False), (REAL, True)])
def test_a_query_reads_the_keys_of_its_mask(real, causal):
    mask = attention_mask(None if real is None else jnp.asarray(real), L, causal)
    wanted = by_loop(np.ones((1, L, L), bool) if mask is None else np.asarray(mask))
    np.testing.assert_allclose(attend(Q, K, V, mask), wanted, rtol=1e-5, atol=1e-6)


def test_a_query_without_keys_has_finite_values_and_gradients():
    mask = jnp.zeros((B, 1, L), bool)
    loss = lambda q, k, v: attend(q, k, v, mask).sum()
    np.testing.assert_allclose(attend(Q, K, V, mask)[:, 0], V.mean(axis=1), rtol=1e-5, atol=1e-6)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.grad(loss, (0, 1, 2))(Q, K, V))


def test_separate_and_fused_projections_are_the_same_function():
    x = jax.random.normal(jax.random.key(1), (B, L, HEADS * SIZE))
    fused, separate = Heads(HEADS, bias="none"), Heads(HEADS, fused=False, bias="none")
    kernel = fused.init(jax.random.key(2), x)["params"]["qkv"]["kernel"]
    params = {name: {"kernel": kernel[:, k]} for k, name in enumerate(("query", "key", "value"))}
    found = fused.apply({"params": {"qkv": {"kernel": kernel}}}, x)
    for a, b in zip(found, separate.apply({"params": params}, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_rotary_products_depend_on_the_distance_alone():
    q, k = jax.random.normal(jax.random.key(3), (2, 1, 1, 1, 8))
    at = lambda x, i: dx.layers.rotary(x, jnp.array([[i]]))[0, 0, 0]
    found = [float(at(q, i) @ at(k, i + 3)) for i in (0, 5, 11)]
    np.testing.assert_allclose(found, found[0], rtol=1e-4)
    assert abs(found[0] - float(at(q, 0) @ at(k, 1))) > 1e-3


def test_a_padded_place_changes_no_other():
    module = SelfAttention(HEADS, causal=False)
    x = jax.random.normal(jax.random.key(4), (B, L, HEADS * SIZE))
    params = module.init(jax.random.key(5), x)
    real = jnp.asarray(REAL)
    before = module.apply(params, x, real)
    after = module.apply(params, jnp.where(real[..., None], x, 9.0), real)
    np.testing.assert_array_equal(before[REAL], after[REAL])


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (0, 4)])
def test_dense_is_that_of_flax(shape):
    x, key = jax.random.normal(jax.random.key(6), shape), jax.random.key(7)
    theirs, ours = nn.Dense(6), Dense((2, 3))
    params = theirs.init(key, x)
    split = jax.tree.map(lambda a: a.reshape(*a.shape[:-1], 2, 3), params)
    chex.assert_trees_all_equal(ours.init(key, x), split)
    wanted = theirs.apply(params, x).reshape(*shape[:-1], 2, 3)
    np.testing.assert_allclose(ours.apply(split, x), wanted, rtol=1e-6)


def test_dense_contracts_several_axes_in_the_type_of_its_input():
    x = jax.random.normal(jax.random.key(8), (2, 5, 3, 4)).astype(jnp.bfloat16)
    module = Dense(6, axes=2)
    params = module.init(jax.random.key(9), x)
    kernel = params["params"]["kernel"]
    assert kernel.shape == (3, 4, 6) and kernel.dtype == jnp.float32
    found = module.apply(params, x)
    wanted = np.einsum("blhd,hdf->blf", x.astype(jnp.float32), kernel)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), wanted, atol=0.05)
