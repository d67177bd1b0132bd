"""Dropped blocks: survival probabilities, outputs against a loop, the mean, and skipped work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.engine.steps import rematerialised
from dynexit.transforms.stochastic_depth import dropped_blocks, survival

N, B, D = 6, 4, 5
KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = {"w": jax.random.normal(KEYS[0], (N, D, D)), "out": jax.random.normal(KEYS[1], (N, D, 3))}
X = jax.random.normal(KEYS[2], (B, D))


def block(p, h):
    return h + jnp.tanh(h @ p["w"])


def step(called=lambda: None):
    def counted(p, h):
        jax.debug.callback(called)
        return block(p, h)

    return dx.stacked_step(counted, lambda p, h: h @ p["out"], PARAMS)


def by_hand(h, kept, scale):
    """A loop over blocks; `kept` is float32 `[N, B]`."""
    outputs = []
    for i in range(N):
        p = jax.tree.map(lambda a, i=i: a[i], PARAMS)
        h = h + scale[i] * kept[i][:, None] * (block(p, h) - h)
        outputs.append(h @ p["out"])
    return jnp.stack(outputs)


def test_survival_falls_linearly_with_depth():
    np.testing.assert_allclose(
        survival(54, 0.5), [1 - l / 54 * 0.5 for l in range(1, 55)], rtol=1e-6
    )
    for depth in (1, 12, 54):
        np.testing.assert_allclose(survival(depth, 0.5).sum(), (3 * depth - 1) / 4, rtol=1e-6)
    assert float(survival(54, 0.5).sum()) == 40.25
    np.testing.assert_array_equal(survival(7, 1.0), np.ones(7))


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("by", ["batch", "row"])
def test_outputs_and_gradients_match_the_loop(by, remat):
    kept = jax.random.bernoulli(KEYS[3], 0.6, (N, B if by == "row" else 1))
    scale = jnp.linspace(1.0, 2.0, N)
    floats = jnp.broadcast_to(kept, (N, B)).astype(jnp.float32)
    assert 0 < floats.sum() < N * B
    argument = kept if by == "row" else kept[:, 0]
    network = rematerialised(step()) if remat else step()
    found = lambda x: dx.run_all(dropped_blocks(network, argument, scale), x, N)
    wanted = lambda x: by_hand(x, floats, scale)
    np.testing.assert_allclose(jax.jit(found)(X), jax.jit(wanted)(X), rtol=1e-4, atol=1e-5)
    slope = lambda f: jax.jit(jax.grad(lambda x: (f(x) ** 2).sum()))(X)
    np.testing.assert_allclose(slope(found), slope(wanted), rtol=1e-3, atol=1e-3)


def test_with_all_blocks_kept_the_network_is_unchanged():
    plain = jax.jit(lambda x: dx.run_all(step(), x, N))(X)
    kept = jax.jit(
        lambda x: dx.run_all(dropped_blocks(step(), jnp.ones(N, bool), survival(N, 1.0)), x, N)
    )(X)
    np.testing.assert_allclose(kept, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", ["paper", "drop path"])
def test_the_mean_residual_is_scaled_by_the_survival_probability(scale):
    """p f in the form of the paper, f with drop path; 40,000 draws, within five standard errors."""
    draws, p = 40_000, survival(2, 0.3)
    linear = dx.stacked_step(lambda p, h: h + p, lambda p, h: h, jnp.array([2.0, 5.0]))
    factor = jnp.ones(2) if scale == "paper" else 1 / p
    kept = jax.random.bernoulli(KEYS[3], p[:, None], (2, draws))
    states = dx.run_all(dropped_blocks(linear, kept, factor), jnp.zeros(draws), 2)
    added = np.asarray(jnp.diff(states, axis=0, prepend=0.0))
    wanted = np.array([2.0, 5.0]) * np.asarray(p * factor)
    spread = np.array([2.0, 5.0]) * np.asarray(factor * jnp.sqrt(p * (1 - p)))
    assert (np.abs(added.mean(axis=1) - wanted) < 5 * spread / draws**0.5).all()
    if scale == "paper":  # at inference every block is kept and scaled by p
        found = dx.run_all(dropped_blocks(linear, jnp.ones(2, bool), p), jnp.zeros(1), 2)[:, 0]
        np.testing.assert_allclose(found, np.cumsum(wanted), rtol=1e-6)


def test_blocks_dropped_for_all_rows_are_not_computed():
    calls = []
    counted = step(lambda: calls.append(1))
    run = jax.jit(lambda kept: dx.run_all(dropped_blocks(counted, kept, jnp.ones(N)), X, N))
    for kept in ([True] * N, [False] * N, [True, False, False, True, False, False]):
        calls.clear()
        jax.block_until_ready(run(jnp.array(kept)))
        jax.effects_barrier()
        assert len(calls) == sum(kept)


def test_a_block_that_changes_the_shape_is_kept():
    widening = dx.stacked_step(
        lambda p, h: jnp.concatenate([h, h], axis=1), lambda p, h: h, jnp.ones(1)
    )
    step = dropped_blocks(widening, jnp.zeros(1, bool), jnp.full(1, 2.0))
    assert dx.engine.run_full(step, jnp.ones((3, 2)), 1)[0].tolist() == [[1.0] * 4] * 3


IDENTITY = dx.Step(lambda i: (), lambda w, i, s: (s, s))
TWO_BLOCKS = dx.stacked_step(block, lambda p, h: h, PARAMS, blocks=2)


@pytest.mark.parametrize(
    ("call", "error", "argument"),
    [
        (lambda: survival(0, 0.5), ValueError, "depth"),
        (lambda: survival(4, 0.0), ValueError, "last"),
        (lambda: survival(4, 1.5), ValueError, "last"),
        (lambda: dropped_blocks(IDENTITY, jnp.ones(2, bool), jnp.ones(2)), ValueError, "step"),
        (lambda: dropped_blocks(TWO_BLOCKS, jnp.ones(3, bool), jnp.ones(3)), ValueError, "step"),
        (lambda: dropped_blocks(step(), jnp.full(N, 0.5), jnp.ones(N)), TypeError, "kept"),
        (lambda: dropped_blocks(step(), jnp.ones(2, bool), jnp.ones(2)), ValueError, "kept"),
        (lambda: dropped_blocks(step(), jnp.ones(N, bool), 1.0), ValueError, "kept"),
    ],
)
def test_invalid_arguments(call, error, argument):
    with pytest.raises(error, match=f"^`{argument}`"):
        call()
