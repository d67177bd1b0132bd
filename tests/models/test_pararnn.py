"""The ParaGRU block against the same block run step by step, and its status."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.models.recurrent.pararnn import Recurrent, para_gru_cell

B, L, D = 3, 20, 6
X = jax.random.normal(jax.random.key(0), (B, L, D))


def test_the_layer_is_a_loop_over_time():
    layer = Recurrent(12, 1e-6, 2.0)
    params = layer.init(jax.random.key(1), X)["params"]
    params = {**params, "recurrent": 5 * params["recurrent"]}
    states, residual = layer.apply({"params": params}, X)
    a = 2.0 * np.tanh(np.asarray(params["recurrent"]) / 2.0)
    assert np.abs(a).max() > 1.5
    kernel, bias = (np.asarray(params["inputs"][name]) for name in ("kernel", "bias"))
    u = np.einsum("bld,dke->blke", np.asarray(X), kernel) + bias
    sig, h = lambda v: 1 / (1 + np.exp(-v)), np.zeros((B, D))
    for t in range(L):
        z, r = sig(a[0] * h + u[:, t, 0]), sig(a[1] * h + u[:, t, 1])
        h = (1 - z) * h + z * np.tanh(a[2] * h * r + u[:, t, 2])
        np.testing.assert_allclose(states[:, t], h, atol=1e-5)
    assert (residual <= 1e-6).all()


def test_a_recurrence_that_is_not_solved_says_so():
    """One correction is exact for two places and no more."""
    residuals = {}
    for most in (1, 12):
        model = dx.models.ParaGru(width=D, depth=2, corrections=most).build((L, 2), 4)
        params = model.init(jax.random.key(2))
        step, state = model.steps(params), model.embed(params, 3 * X[..., :2])
        for i in range(2):
            state, output = step.apply(step.select(jnp.int32(i)), jnp.int32(i), state)
        residuals[most] = np.asarray(output["newton_residual"])
    assert (residuals[12] <= 1e-5).all() and (residuals[1] > 1e-4).all()


def test_half_of_the_state_is_kept_by_open_gates():
    found = para_gru_cell(jnp.zeros((3, 2)), jnp.array([[1.0, -3.0]]), jnp.zeros((1, 3, 2)))
    np.testing.assert_allclose(found, [[0.5, -1.5]])


@pytest.mark.parametrize("name", ["tolerance", "bound"])
def test_refusals(name):
    with pytest.raises(ValueError, match=f"`ParaGru`: {name} must be above 0, got 0.0"):
        dx.models.ParaGru(width=4, depth=1, **{name: 0.0}).build((4, 2), 3)
