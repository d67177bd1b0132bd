"""Fixed points against loops over rows, gradients against the closed form, and the same iteration
through the engine.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.solvers.anderson import anderson, damped
from dynexit.solvers.fixed_point import (
    begin_fixed_point,
    fixed_point,
    fixed_point_step,
    implicit,
    phantom,
)

B, D = 6, 4
TURN = np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0].astype(np.float32)
RATES = jnp.array([0.0, 0.3, 0.5, 0.7, 0.85, 0.93])  # of contraction, a row each
X = {"rate": RATES, "shift": jax.random.normal(jax.random.key(0), (B, D))}
Z = jnp.zeros((B, D))


def turning(params, x, z):
    """An affine contraction by x["rate"] whose fixed point is known."""
    return x["rate"][:, None] * (z @ params) + x["shift"]


def bent(params, x, z):
    return jnp.tanh(x["rate"][:, None] * (z @ params) + x["shift"])


def loop(f, x, z, most, tolerance, damping=0.0):
    """One row: `(z, steps, residual)`."""
    steps = 0
    while steps < most:
        steps += 1
        value = np.asarray(f(TURN, jax.tree.map(lambda a: a[None], x), z[None])[0], np.float64)
        residual = np.linalg.norm(value - z) / np.linalg.norm(value)
        z = np.float32(damping * z + (1 - damping) * value)
        if residual < tolerance:
            break
    return z, steps, residual


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_every_row_is_the_loop_of_its_own(damping):
    found = jax.jit(lambda: fixed_point(bent, TURN, X, Z, 40, 1e-3, damped(damping)))()
    rows = [
        loop(bent, jax.tree.map(lambda a, b=b: a[b], X), np.zeros(D, np.float32), 40, 1e-3, damping)
        for b in range(B)
    ]
    for b, (z, steps, residual) in enumerate(rows):
        assert found.steps[b] == steps and bool(found.converged[b]) == (residual < 1e-3)
        np.testing.assert_allclose(found.state[b], z, atol=1e-6)
        np.testing.assert_allclose(found.residual[b], residual, rtol=1e-2, atol=1e-6)
    assert len({steps for _, steps, _ in rows}) > 3


def test_rows_do_not_know_their_mates():
    together = fixed_point(turning, TURN, X, Z, 60, 1e-4)
    for b in (0, 2, 5):
        alone = fixed_point(
            turning, TURN, jax.tree.map(lambda a, b=b: a[b : b + 1], X), Z[:1], 60, 1e-4
        )
        assert alone.steps[0] == together.steps[b]
        np.testing.assert_allclose(
            alone.state[0], together.state[b], rtol=1e-5, atol=1e-5
        )  # of 7, rounding times 1 / (1 - 0.93)
    assert (
        not together.converged[5] and together.steps[5] == 60 and bool(together.converged[:4].all())
    )


def exact(weights, x):
    """z = r z W + s, solved."""
    solve = lambda rate, shift: jnp.linalg.solve(jnp.eye(D) - rate * weights.T, shift)
    return jax.vmap(solve)(x["rate"], x["shift"])


@pytest.mark.parametrize(
    "mixing", [damped(), damped(0.2), anderson(3)], ids=["plain", "damped", "anderson"]
)
def test_gradients_are_those_of_the_solution(mixing):
    pull = jax.random.normal(jax.random.key(1), (B, D))
    loss = lambda weights, x: (
        pull * fixed_point(turning, weights, x, Z, 400, 1e-7, mixing).state
    ).sum()
    wanted = jax.grad(lambda weights, x: (pull * exact(weights, x)).sum(), argnums=(0, 1))(
        jnp.asarray(TURN), X
    )
    found = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.asarray(TURN), X)
    chex.assert_trees_all_close(found, wanted, rtol=2e-3, atol=2e-3)


def test_gradients_of_a_bent_map_are_those_through_the_iterations():
    def unrolled(weights, x):
        z = Z
        for _ in range(200):
            z = bent(weights, x, z)
        return (z**2).sum()

    solved = lambda weights, x: (fixed_point(bent, weights, x, Z, 300, 1e-7).state ** 2).sum()
    wanted, found = (
        jax.jit(jax.grad(f, argnums=(0, 1)))(jnp.asarray(TURN), X) for f in (unrolled, solved)
    )
    chex.assert_trees_all_close(found, wanted, rtol=1e-3, atol=1e-4)


def halving(params, x, z):
    return 0.5 * z + x


def test_the_implicit_gradient_is_whole_and_the_phantom_is_not():
    """f(z) = z / 2 + x: z* = 2 x, dz*/dx = 2; one unrolled step sees 1."""
    slope = lambda g: float(jax.grad(lambda x: g(x[None])[0])(jnp.float32(1.5)))
    z = jnp.array([3.0])
    assert float(
        fixed_point(halving, (), jnp.array([1.5]), jnp.zeros(1), 60, 1e-6).state[0]
    ) == pytest.approx(3, abs=1e-4)
    assert slope(
        lambda x: fixed_point(halving, (), x, jnp.zeros(1), 60, 1e-6).state
    ) == pytest.approx(2, abs=1e-4)
    assert slope(lambda x: implicit(halving, (), x, z, 60, 1e-6)) == pytest.approx(2, abs=1e-4)
    assert [slope(lambda x, k=k: phantom(halving, (), x, z, k)) for k in (1, 2, 3)] == [
        1.0,
        1.5,
        1.75,
    ]
    assert slope(lambda x: phantom(halving, (), x, z, 1, damping=0.5)) == 0.5
    assert (
        slope(lambda x: implicit(halving, (), x, z, 1, 0.0)) == 1.5
    )  # a backward solve cut short is short, and not wrong


def geometric(rate, x, z):
    return rate * z + 1.0


@pytest.mark.parametrize("rate, steps", [(0.5, 10), (0.9, 45)])
def test_steps_are_those_of_optimistix(rate, steps):
    optimistix = pytest.importorskip("optimistix")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        solver = optimistix.FixedPointIteration(rtol=1e-3, atol=1e-6)
        theirs = optimistix.fixed_point(
            lambda y, rate: rate * y + 1, solver, jnp.zeros(()), args=jnp.float32(rate)
        )
    ours = fixed_point(geometric, jnp.float32(rate), (), jnp.zeros(1), 100, 1e-3)
    assert int(theirs.stats["num_steps"]) == int(ours.steps[0]) == steps
    np.testing.assert_allclose(ours.state[0], theirs.value, rtol=1e-5)


def mixed_by_loop(f, z, most, memory, ridge, beta):
    """Anderson's iterates of one row, in float64, one column at a time."""
    kept = []
    for _ in range(most):
        value = f(z)
        kept = [*kept, (z, value - z)][-memory:]
        g = np.stack([r for _, r in kept])
        gram = g @ g.T
        a = np.linalg.solve(
            gram + ridge * np.trace(gram) / len(kept) * np.eye(len(kept)), np.ones(len(kept))
        )
        z = sum(w * (point + beta * r) for w, (point, r) in zip(a / a.sum(), kept, strict=True))
    return z


@pytest.mark.parametrize("beta", [1.0, 0.6])
def test_anderson_is_its_loop(beta):
    found = fixed_point(bent, TURN, X, Z, 7, 0.0, anderson(3, 1e-3, beta)).state
    weights = TURN.astype(np.float64)
    for b in range(B):
        rate, shift = float(X["rate"][b]), np.asarray(X["shift"][b], np.float64)
        wanted = mixed_by_loop(
            lambda z, r=rate, s=shift: np.tanh(r * (z @ weights) + s), np.zeros(D), 7, 3, 1e-3, beta
        )
        np.testing.assert_allclose(found[b], wanted, atol=2e-4)


def test_anderson_needs_fewer_steps():
    plain, mixed = (
        fixed_point(turning, TURN, X, Z, 200, 1e-4, mixing) for mixing in (damped(), anderson(5))
    )
    assert bool(plain.converged.all()) and bool(mixed.converged.all())
    assert int(plain.steps[-1]) > 100 and int(mixed.steps[-1]) < 20
    np.testing.assert_allclose(mixed.state, exact(jnp.asarray(TURN), X), atol=2e-3)


def swinging(params, x, z):
    return -2.0 * z + x


def test_damping_tames_what_swings():
    """f' = -2: the plain iteration grows, with damping 1/2 the error halves each time."""
    x, z = jnp.array([3.0]), jnp.array([0.5])
    plain, tamed = (
        fixed_point(swinging, (), x, z, 30, 1e-4, mixing) for mixing in (damped(), damped(0.5))
    )
    assert not plain.converged[0] and abs(float(plain.state[0])) > 1e6
    assert tamed.converged[0] and float(tamed.state[0]) == pytest.approx(1, abs=1e-3)


def step_and_state(f=turning, mixing=None):
    step = fixed_point_step(f, lambda p, z: z @ p, jnp.asarray(TURN), mixing)
    return step, begin_fixed_point(X, Z, mixing)


@pytest.mark.parametrize("mixing", [None, anderson(3)], ids=["plain", "anderson"])
@pytest.mark.parametrize("run", ["masked", "compacted", "stream"])
def test_the_engine_takes_the_same_steps(run, mixing):
    wanted = fixed_point(turning, TURN, X, Z, 40, 1e-3, mixing)
    step, state = step_and_state(mixing=mixing)
    rule = dx.criteria.residual_below(1e-3)
    if run == "stream":
        halted = dx.run_stream(step, state, 40, rule, slots=2)
    else:
        halted = dx.run_until(step, state, 40, rule, run, tile=2)
        np.testing.assert_allclose(halted.state["z"], wanted.state, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(halted.exit_depth, wanted.steps)
    np.testing.assert_allclose(halted.output["logits"], wanted.state @ TURN, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(halted.output["residual"], wanted.residual, rtol=1e-2, atol=1e-6)
    assert len(set(wanted.steps.tolist())) > 2
    if run != "masked":
        assert int(halted.rows_executed) < 1.3 * int(wanted.steps.sum())


@pytest.mark.parametrize("mixing", [damped(), anderson(3)], ids=["plain", "anderson"])
def test_a_nan_runs_to_the_limit_is_counted_and_stays_alone(mixing):
    x = {**X, "shift": X["shift"].at[1].set(jnp.nan)}
    clean, broken = (fixed_point(turning, TURN, x, Z, 40, 1e-2, mixing) for x in (X, x))
    others = np.arange(B) != 1
    for a, b in zip(clean, broken, strict=True):
        np.testing.assert_array_equal(np.asarray(a)[others], np.asarray(b)[others])
    assert broken.steps[1] == 40 and not broken.converged[1] and bool(jnp.isnan(broken.residual[1]))
    assert clean.steps[1] < 40
    step, _ = step_and_state(mixing=mixing)
    halted = dx.run_until(
        step,
        begin_fixed_point(x, Z, mixing),
        40,
        dx.criteria.residual_below(1e-2),
        "compacted",
        tile=2,
    )
    np.testing.assert_array_equal(halted.nan_exits, [0, 40, 0, 0, 0, 0])
    np.testing.assert_array_equal(halted.exit_depth, broken.steps)
    assert bool(jnp.isfinite(halted.output["logits"][others]).all())


def test_a_nan_row_spoils_no_gradient_of_others():
    x = {**X, "shift": X["shift"].at[1].set(jnp.nan)}
    slope = lambda x: jax.grad(lambda x: fixed_point(bent, TURN, x, Z, 40, 1e-3).state.sum())(x)[
        "shift"
    ]
    others = np.arange(B) != 1
    np.testing.assert_array_equal(slope(x)[others], slope(X)[others])
    assert bool(jnp.isnan(slope(x)[1]).all())


def test_what_runs_away_has_not_converged():
    """||f(z)|| overflows one step before ||f(z) - z||: their quotient is 0 there."""
    away, z = (lambda p, x, z: 1.5 * z + x), jnp.ones((2, 16))
    found = fixed_point(away, (), z, z, 300)
    assert not found.converged.any() and not (found.residual < 1.0).any()
    step, state = fixed_point_step(away, lambda p, z: z, ()), begin_fixed_point(z, z)
    assert dx.run_until(step, state, 300, dx.criteria.residual_below(1e-3)).exit_depth.tolist() == [
        300,
        300,
    ]
    told = dx.criteria.change_below(1e-3, read=lambda output: output["logits"])
    assert dx.run_until(step, state, 300, told).exit_depth.tolist() == [300, 300]


def test_a_tolerance_is_no_recompilation():
    traces = []

    def counted(params, x, z):
        traces.append(None)
        return turning(params, x, z)

    run = jax.jit(lambda tolerance: fixed_point(counted, TURN, X, Z, 40, tolerance).steps)
    loose = run(jnp.float32(1e-1))
    traced = len(traces)
    tight = run(jnp.float32(1e-3))
    assert len(traces) == traced and bool((tight > loose)[1:].all())


@pytest.mark.parametrize(
    "call, kind, text",
    [
        (
            lambda: fixed_point(turning, TURN, X, Z, 0),
            ValueError,
            "`most` must be at least 1, got 0",
        ),
        (
            lambda: fixed_point(turning, TURN, X, Z.astype(jnp.int32)),
            TypeError,
            "`z` must be floating point, got int32",
        ),
        (
            lambda: fixed_point(lambda p, x, z: z[:, :2], TURN, X, Z),
            ValueError,
            "`f` must return the shape and type of `z`, float32[6, 4], got",
        ),
        (
            lambda: fixed_point(turning, TURN, X, Z, tolerance=[1.0]),
            ValueError,
            "`tolerance` must be a scalar, got shape (1,)",
        ),
        (lambda: fixed_point(turning, TURN, X, Z[:3]), ValueError, "x and z"),
        (
            lambda: phantom(halving, (), jnp.ones(1), jnp.ones(1), 0),
            ValueError,
            "`steps` must be at least 1, got 0",
        ),
        (
            lambda: fixed_point(turning, TURN, X, Z, mixing=anderson),
            TypeError,
            "`mixing` must be made by `damped()` or `anderson()`",
        ),
        (lambda: damped(1.0), ValueError, "`damping` must be at least 0 and below 1, got 1.0"),
        (lambda: anderson(0), ValueError, "`memory` must be at least 1, got 0"),
        (lambda: anderson(2, ridge=0.0), ValueError, "`ridge` must be above 0"),
        (lambda: anderson(2, beta=0.0), ValueError, "`beta` must be above 0 and up to 1, got 0.0"),
    ],
)
def test_refusals(call, kind, text):
    with pytest.raises(kind) as error:
        call()
    assert text in str(error.value)
