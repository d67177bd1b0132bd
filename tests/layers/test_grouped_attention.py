"""Grouped attention over a whole cache and over the places in use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.layers.grouped_attention import CHUNK, attend_grouped


def formula(q, k, v, mask, cap):
    """The definition, one query head at a time, in float64."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    y = np.zeros_like(q)
    for h in range(q.shape[2]):
        of = h // (q.shape[2] // k.shape[1])
        scores = np.einsum("bqd,bkd->bqk", q[:, :, h], k[:, of]) * q.shape[-1] ** -0.5
        scores = scores if cap is None else cap * np.tanh(scores / cap)
        weights = np.exp(scores) * np.asarray(mask)
        y[:, :, h] = np.einsum("bqk,bkd->bqd", weights / weights.sum(-1, keepdims=True), v[:, of])
    return y


@pytest.mark.parametrize("cap", [None, 3.0], ids=str)
@pytest.mark.parametrize("window", [None, 20], ids=str)
@pytest.mark.parametrize("places", [3 * CHUNK, 3 * CHUNK - 60], ids=str)
def test_parts_of_a_cache_make_the_whole(places, window, cap):
    keys = jax.random.split(jax.random.key(0), 3)
    q = 3 * jax.random.normal(keys[0], (3, 2, 4, 8))
    k, v = (jax.random.normal(key, (3, 2, places, 8)) for key in keys[1:])
    at = jnp.array([3, CHUNK + 1, 2 * CHUNK - 2])[:, None, None] + jnp.arange(2)[None, :, None]
    entry = jnp.arange(places)[None, None]
    mask = (entry <= at) & (entry > at - (window or places))
    wanted = formula(q, k, v, mask, cap)
    for used in (None, jnp.int32(places)):
        found = attend_grouped(q, k, v, mask, cap=cap, used=used)
        np.testing.assert_allclose(found, wanted, atol=2e-6)
    v = v.at[:, :, 2 * CHUNK :].set(jnp.nan)  # is not read
    found = attend_grouped(q, k, v, mask, cap=cap, used=at.max() + 1)
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_a_query_without_any_key_gets_no_nan():
    x, mask = jnp.ones((1, 2, 3 * CHUNK, 4)), jnp.zeros((1, 1, 3 * CHUNK), bool)
    found = attend_grouped(jnp.ones((1, 1, 2, 4)), x, x, mask, used=jnp.int32(0))
    np.testing.assert_allclose(found, 1.0)
