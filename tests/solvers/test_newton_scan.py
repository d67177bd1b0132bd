"""Newton over time against the recurrence step by step: values, gradients, convergence, and what is
said where it fails.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dynexit.solvers.newton_scan import affine_scan, check_elementwise
from dynexit.solvers.newton_scan import newton_scan as solve

B, L, D = 3, 48, 5


def gru(a, h, u):
    """ParaGRU: a `[3, D]`, u `[b, 3, D]`."""
    z = jax.nn.sigmoid(a[None, 0] * h + u[:, 0])
    r = jax.nn.sigmoid(a[None, 1] * h + u[:, 1])
    return (1 - z) * h + z * jnp.tanh(a[None, 2] * h * r + u[:, 2])


def drawn(scale, dtype=jnp.float32, length=L):
    keys = jax.random.split(jax.random.key(0), 3)
    draw = lambda key, shape: jax.random.normal(key, shape, dtype)
    return (
        scale * draw(keys[0], (3, D)),
        draw(keys[1], (B, length, 3, D)),
        0.5 * draw(keys[2], (B, D)),
    )


def step_by_step(a, x, h):
    """The oracle: `[B, L, D]`."""
    after = lax.scan(lambda h, u: (gru(a, h, u),) * 2, h, x.swapaxes(0, 1))[1]
    return after.swapaxes(0, 1)


@pytest.mark.parametrize("scale, most", [(0.3, 4), (1.0, 7)])
def test_states_are_those_of_the_loop(scale, most):
    problem = drawn(scale)
    found = jax.jit(lambda *p: solve(gru, *p, most, 1e-6))(*problem)
    np.testing.assert_allclose(found.states, step_by_step(*problem), atol=3e-6)
    assert (
        bool(found.converged.all())
        and (found.residual <= 1e-6).all()
        and (found.iterations <= most).all()
    )
    assert (found.iterations >= 2).all()


def test_in_double_precision_to_the_tenth_digit():
    with jax.enable_x64(True):
        problem = drawn(1.0, jnp.float64)
        found = solve(gru, *problem, 8, 1e-12)
        assert found.states.dtype == jnp.float64 and bool(found.converged.all())
        np.testing.assert_allclose(found.states, step_by_step(*problem), atol=1e-10)


def sheets(scale):
    """The sheet's problem in float64, T = 256 and d = 16: recurrent weights of that scale, inputs,
    h_0.
    """
    keys = jax.random.split(jax.random.key(0))
    weights, x = (
        jax.random.normal(key, shape, jnp.float64)
        for key, shape in zip(keys, [(3, 16), (1, 256, 3, 16)], strict=True)
    )
    return scale * weights, x, jnp.zeros((1, 16))


def test_golden_errors_after_every_correction():
    """Within a factor of 4 of the sheet's, the first k + 1 states exact; with weights of scale 3 it
    does not converge.
    """
    run = jax.jit(
        lambda tolerance, *problem: (solve(gru, *problem, 8, tolerance), step_by_step(*problem))
    )

    def corrected(problem, tolerance):
        found, wanted = run(jnp.float32(tolerance), *problem)
        assert found.states.dtype == jnp.float64
        return (
            int(found.iterations[0]),
            float(found.residual[0]),
            np.abs(np.asarray(found.states - wanted)[0]).max(axis=1),
        )

    with jax.enable_x64(True):
        for scale, sheet in {
            0.3: [1e-1, 2e-3, 6e-7, 7e-14, 3e-16],
            1.0: [5e-1, 2e-1, 2e-2, 1e-4, 2e-8],
        }.items():
            found, (k, residual, wrong) = [], corrected(sheets(scale), np.inf)
            while k < 5:
                k, residual, wrong = corrected(
                    sheets(scale), 0.99 * residual
                )  # just below: one more
                found.append(wrong.max())
                assert k == len(found) and wrong[: k + 1].max() < 1e-12
            np.testing.assert_allclose(np.log10(found), np.log10(sheet), atol=np.log10(4))
            k, residual, wrong = corrected(sheets(scale), 1e-11)
            assert k <= 6 and wrong.max() < 1e-10
        k, residual, wrong = corrected(sheets(3.0), 1e-3)
        assert k == 8 and residual > 1 and wrong.max() > 1 and wrong[:9].max() < 1e-12


def test_golden_gradients_in_double_precision():
    with jax.enable_x64(True):
        pull = jax.random.normal(jax.random.key(1), (1, 256, 16), jnp.float64)
        slopes = lambda run: jax.jit(jax.grad(lambda *p: (pull * run(*p)).sum(), argnums=(0, 1, 2)))
        by_newton, by_scan = (
            slopes(lambda *p: solve(gru, *p, 8, 1e-13).states),
            slopes(step_by_step),
        )
        for scale in (0.3, 1.0):
            for one, other in zip(by_newton(*sheets(scale)), by_scan(*sheets(scale)), strict=True):
                assert one.dtype == jnp.float64
                np.testing.assert_allclose(one, other, atol=1e-8, rtol=0)


def test_after_k_corrections_the_first_k_and_one_states_are_exact():
    problem = drawn(3.0)
    wanted = np.asarray(step_by_step(*problem))
    for k in (1, 2, 4, 8):
        found = np.asarray(solve(gru, *problem, k, 0.0).states)
        np.testing.assert_allclose(found[:, : k + 1], wanted[:, : k + 1], rtol=1e-4, atol=1e-5)
    one = np.asarray(solve(gru, *problem, 1, 0.0).states)
    assert np.abs(one[:, 2:] - wanted[:, 2:]).max() > 0.1


def test_gradients_are_those_through_the_loop():
    problem = drawn(0.8)
    pull = jax.random.normal(jax.random.key(1), (B, L, D))
    loss = lambda run: jax.jit(jax.grad(lambda *p: (pull * run(*p)).sum(), argnums=(0, 1, 2)))
    wanted = loss(step_by_step)(*problem)
    found = loss(lambda *p: solve(gru, *p, 12, 1e-7).states)(*problem)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()))


def test_a_jacobian_of_another_time_does_not_converge(monkeypatch):
    """The convergence above is owed to the right Jacobians: shifted by one, as many corrections
    leave large errors.
    """
    module = importlib.import_module(
        "dynexit.solvers.newton_scan"
    )  # the package gives the function of that name
    problem, right = drawn(0.3), module.linearised
    good = solve(gru, *problem, 4, 1e-6)

    def shifted(*arguments):
        value, diagonal = right(*arguments)
        return value, jnp.roll(diagonal, 1, axis=1)

    monkeypatch.setattr(module, "linearised", shifted)
    bad = solve(gru, *problem, 4, 1e-6)
    assert bool(good.converged.all()) and not bad.converged.any()
    assert float(bad.residual.min()) > 100 * float(good.residual.max())


def test_what_does_not_converge_is_said():
    a, x, h = drawn(1.0)
    found = solve(gru, 8 * a, x, h, 3, 1e-6)
    assert not found.converged.any() and (found.iterations == 3).all()
    error = np.abs(np.asarray(found.states - step_by_step(8 * a, x, h))).max(axis=(1, 2))
    assert (error > 1e-2).all() and (found.residual > 1e-2).all()


def test_rows_stop_for_themselves():
    a, x, h = drawn(1.0)
    x = x.at[0].multiply(0.0).at[2].set(jnp.nan)
    h = h.at[0].set(0.0)  # nothing moves: the guess is the answer
    found = solve(gru, a, x, h, 12, 1e-6)
    assert found.iterations[0] == 0 < found.iterations[1] < 12 == found.iterations[2]
    np.testing.assert_array_equal(found.converged, [True, True, False])
    assert bool(jnp.isnan(found.residual[2]))
    alone = solve(gru, a, x[1:2], h[1:2], 12, 1e-6)
    np.testing.assert_array_equal(alone.states[0], found.states[1])
    assert alone.iterations[0] == found.iterations[1]


@pytest.mark.parametrize("reverse", [False, True])
def test_affine_scan_is_its_loop(reverse):
    slopes, shifts = jax.random.normal(jax.random.key(0), (2, B, 9, D))
    y, wanted = np.zeros((B, D)), np.zeros((B, 9, D))
    for t in reversed(range(9)) if reverse else range(9):
        y = wanted[:, t] = np.asarray(slopes[:, t]) * y + np.asarray(shifts[:, t])
    np.testing.assert_allclose(affine_scan(slopes, shifts, reverse), wanted, rtol=1e-4, atol=1e-4)


def test_a_cell_that_mixes_channels_converges_and_is_told_apart():
    """Its states are right and its gradient is not: what `check_elementwise` is for."""
    w = jax.random.normal(jax.random.key(5), (D, D)) / D
    mixing = lambda p, h, u: jnp.tanh(h @ p + u)
    x, h = jax.random.normal(jax.random.key(6), (B, 12, D)), jnp.zeros((B, D))
    assert solve(mixing, w, x, h, 12, 1e-4).converged.all()
    with pytest.raises(
        ValueError,
        match=r"`f` must be element-wise in h, but entry . of its result changes with entry . of h",
    ):
        check_elementwise(mixing, w, x[:, 0], jnp.ones((B, D)))
    check_elementwise(lambda p, h, u: jnp.tanh(h * p[:1] + u), w, x[:, 0], jnp.ones((B, D)))


@pytest.mark.parametrize(
    "change, text",
    [
        (dict(most=0), "`most` must be at least 1, got 0"),
        (dict(h=jnp.zeros(D)), "`h` must be floating point of shape [B, D], got float32[5]"),
        (dict(h=jnp.zeros((B, D), jnp.int32)), "got int32[3, 5]"),
        (dict(x=jnp.zeros(B)), "`x` must have leaves of shape [B, L, ...] with one L"),
        (
            dict(f=lambda p, h, u: h[:, :1]),
            "`f` must return the shape and type of `h`, float32[3, 5], got float32[3, 1]",
        ),
        (dict(h=jnp.zeros((2, D))), "x and h"),
    ],
)
def test_refusals(change, text):
    a, x, h = drawn(1.0)
    with pytest.raises(ValueError) as error:
        solve(**{**dict(f=gru, params=a, x=x, h=h), **change})
    assert text in str(error.value)
