"""The continuous network: depth by tolerance and by row; gradients of the steps taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.solvers.ode import Solver

pytest.importorskip("diffrax")
B, N = 5, 30
MODEL = dx.models.NeuralOde(width=8, hidden=16, steps=N, extra=2).build((6,), 3)
PARAMS = MODEL.init(jax.random.key(0))
PARAMS["block"]["out"]["kernel"] = 4 * PARAMS["block"]["out"]["kernel"]
INPUTS = jnp.array([0.0, 0.3, 1.0, 4.0, 12.0])[:, None] * jax.random.normal(
    jax.random.key(1), (B, 6)
)
ARRIVED = dx.criteria.gate_above(0.999)


def run(model, inputs):
    return jax.jit(
        lambda p: dx.run_until(
            model.steps(p), model.embed(p, inputs), N, ARRIVED, "compacted", tile=2
        )
    )(PARAMS)


def test_rows_leave_when_they_arrive_with_what_small_euler_steps_give():
    found = run(MODEL, INPUTS)
    assert len(set(found.exit_depth.tolist())) > 1 and int(found.exit_depth.max()) < N
    np.testing.assert_array_equal(found.output["gate"], np.ones(B))
    kernel = lambda name: (
        np.asarray(PARAMS["block"][name]["kernel"]),
        np.asarray(PARAMS["block"][name]["bias"]),
    )
    (w1, b1), (w2, b2), y = (
        kernel("in"),
        kernel("out"),
        np.asarray(MODEL.embed(PARAMS, INPUTS)["y"], np.float64),
    )
    slope = lambda y, t: np.tanh(np.concatenate([y, np.full((B, 1), t)], 1) @ w1 + b1) @ w2 + b2
    for k in range(2000):  # the midpoint rule
        t = k / 2000
        y = y + slope(y + slope(y, t) / 4000, t + 1 / 4000) / 2000
    np.testing.assert_allclose(found.state["y"], y, rtol=2e-2, atol=2e-2)
    assert np.abs(y - np.asarray(MODEL.embed(PARAMS, INPUTS)["y"])).max() > 0.5


def test_a_tighter_tolerance_is_deeper():
    tight = dx.models.NeuralOde(width=8, hidden=16, steps=N, extra=2).build(
        (6,), 3, solver=Solver(rtol=1e-6)
    )
    loose, deep = run(MODEL, INPUTS).exit_depth, run(tight, INPUTS).exit_depth
    assert (deep > loose).all()


def test_gradients_reach_every_parameter():
    loss = lambda p: jnp.square(
        dx.run_all(MODEL.steps(p), MODEL.embed(p, INPUTS), 12)["logits"][-1]
    ).sum()
    for path, slope in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(PARAMS)):
        assert bool(jnp.isfinite(slope).all()) and float(jnp.abs(slope).max()) > 0, (
            jax.tree_util.keystr(path)
        )


def test_refusals():
    with pytest.raises(ValueError, match="`NeuralOde`: extra must be at least 0"):
        dx.models.NeuralOde(width=8, hidden=16, steps=N, extra=-1).build((6,), 3)
    with pytest.raises(
        ValueError, match=r"`inputs` must be arrays of shape \[B, 6\], got \[2, 5\]"
    ):
        MODEL.embed(PARAMS, jnp.zeros((2, 5)))
