"""Equations step by step through the engine, against diffrax's own loop and against explicit ones."""

import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.solvers.ode import Solver, begin_ode, ode_step

diffrax = pytest.importorskip("diffrax")
ARRIVED = dx.criteria.gate_above(0.999)


def decay(params, t, y, x):
    return -x * y


def read(params, y):
    return y


def run(rates, solver, depth=60, y=None, executor="compacted"):
    y = jnp.ones(len(rates)) if y is None else y
    state = begin_ode(decay, (), jnp.asarray(rates, jnp.float32), y, solver)
    return dx.run_until(ode_step(decay, read, (), solver), state, depth, ARRIVED, executor, tile=2)


@pytest.mark.parametrize("rtol, steps, value", [(1e-3, 3, 0.36797), (1e-5, 5, 0.36788)])
def test_a_tolerance_sets_the_steps(rtol, steps, value):
    """Golden: y' = -y over [0, 1]."""
    found = run([1.0], Solver(rtol=rtol))
    assert int(found.exit_depth[0]) == steps
    assert (
        int(run([1.0], Solver(rtol=rtol, first=None)).exit_depth[0]) < steps
    )  # estimated, the first step is longer
    assert float(found.output["logits"][0]) == pytest.approx(value, abs=5e-6)  # as printed


def test_each_row_takes_the_steps_that_diffrax_takes():
    rates, y, solver = [0.1, 1.0, 10.0, 50.0], jnp.array([1.0, -2.0, 0.5, 1.0]), Solver(rtol=1e-4)

    def theirs(rate, y):
        term, controller = (
            diffrax.ODETerm(lambda t, y, a: -rate * y),
            diffrax.PIDController(rtol=1e-4, atol=1e-6),
        )
        return diffrax.diffeqsolve(
            term, diffrax.Tsit5(), 0.0, 1.0, None, y, stepsize_controller=controller
        )

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        wanted = jax.vmap(theirs)(jnp.array(rates), y)
    found = run(rates, solver, y=y)
    np.testing.assert_array_equal(found.exit_depth, wanted.stats["num_steps"])
    np.testing.assert_allclose(found.output["logits"], wanted.ys[:, 0], rtol=1e-5, atol=1e-7)
    live = (np.asarray(found.exit_depth) > np.arange(30)[:, None]).sum(axis=1)
    assert int(found.rows_executed) == (2 * -(-live // 2)).sum()  # tiles of two rows
    alone = run(rates[2:3], solver, y=y[2:3])
    assert alone.exit_depth[0] == found.exit_depth[2] and alone.output["logits"][
        0
    ] == pytest.approx(float(found.output["logits"][2]), rel=1e-5)


def test_the_steps_of_four_rates_and_of_one_problem_that_has_them_all():
    """Golden: the sheet's table is that of atol = 1e-7; a shared step is nearly that of the
    stiffest.
    """
    rates, solver = [0.1, 1.0, 10.0, 50.0], Solver(rtol=1e-4, atol=1e-7)
    for executor in ("compacted", "masked"):
        assert run(rates, solver, executor=executor).exit_depth.tolist() == [3, 4, 16, 31]
        assert run([rates], solver, y=jnp.ones((1, 4)), executor=executor).exit_depth.tolist() == [
            28
        ]


def test_copies_of_a_row_are_copies():
    found = run([3.0] * 32, Solver())
    assert (
        len(set(found.exit_depth.tolist())) == 1 and len(set(found.output["logits"].tolist())) == 1
    )


def bend(params, t, y, x):
    return jnp.tanh(params @ y) + x * t


def test_euler_is_the_residual_loop_and_so_is_its_gradient():
    solver, depth = Solver(scheme=diffrax.Euler, dt=0.125), 8
    weights, x, y = (
        jax.random.normal(jax.random.key(k), s) for k, s in enumerate([(3, 3), (4, 3), (4, 3)])
    )

    def ours(weights, y):
        step = ode_step(bend, read, weights, solver)
        return dx.run_all(step, begin_ode(bend, weights, x, y, solver), depth)["logits"]

    def loop(weights, y):
        seen = []
        for k in range(depth):
            y = y + 0.125 * jax.vmap(lambda y, x, k=k: bend(weights, jnp.float32(0.125 * k), y, x))(
                y, x
            )
            seen.append(y)
        return jnp.stack(seen)

    np.testing.assert_allclose(jax.jit(ours)(weights, y), loop(weights, y), rtol=1e-6, atol=1e-6)
    slopes = [
        jax.jit(jax.grad(lambda w, y, f=f: jnp.square(f(w, y)[-1]).sum(), argnums=(0, 1)))(
            weights, y
        )
        for f in (ours, loop)
    ]
    chex.assert_trees_all_close(*slopes, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_that_of_finite_differences():
    """Of all adaptive steps, to 3e-4 of the largest (the sheet's 1e-4 is of float64): central
    differences leave 1e-4.
    """
    weights, x, y = (
        jax.random.normal(jax.random.key(k), s) for k, s in enumerate([(3, 3), (4, 3), (4, 3)])
    )
    solver = Solver(rtol=1e-6, atol=1e-6)

    @jax.jit
    def loss_and_slopes(weights, y):
        def loss(weights, y):
            outputs = dx.run_all(
                ode_step(bend, read, weights, solver), begin_ode(bend, weights, x, y, solver), 12
            )
            return jnp.square(outputs["logits"][-1]).mean(), outputs["gate"][-1]

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(weights, y)

    (_, arrived), slopes = loss_and_slopes(weights, y)
    assert (arrived == 1).all()
    for argument, slope in enumerate(slopes):
        differences = np.zeros(slope.shape)
        for place in np.ndindex(*slope.shape):
            ends = []
            for way in (0.01, -0.01):
                moved = [weights, y]
                moved[argument] = moved[argument].at[place].add(way)
                ends.append(float(loss_and_slopes(*moved)[0][0]))
            differences[place] = (ends[0] - ends[1]) / 0.02
        np.testing.assert_allclose(slope, differences, atol=3e-4 * np.abs(differences).max())


def test_a_nan_row_uses_the_depth_up_and_stays_alone():
    clean, broken = (
        run([1.0, 2.0, 10.0], Solver(), y=jnp.array([1.0, bad, 1.0])) for bad in (1.0, np.nan)
    )
    np.testing.assert_array_equal(
        np.asarray(broken.exit_depth)[[0, 2]], np.asarray(clean.exit_depth)[[0, 2]]
    )
    np.testing.assert_array_equal(
        np.asarray(broken.output["logits"])[[0, 2]], np.asarray(clean.output["logits"])[[0, 2]]
    )
    assert (
        broken.exit_depth[1] == 60
        and broken.nan_exits.tolist() == [0, 1, 0]
        and broken.output["gate"][1] < 1
    )


def test_rows_that_arrived_stay():
    solver = Solver()
    state = begin_ode(decay, (), jnp.array([1.0]), jnp.ones(1), solver)
    outputs = dx.run_all(ode_step(decay, read, (), solver), state, 9)
    assert outputs["gate"][1, 0] < 1 and (outputs["gate"][3:] == 1).all()
    np.testing.assert_array_equal(outputs["logits"][3:, 0], [outputs["logits"][3, 0]] * 6)


def test_without_diffrax_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match=r"need diffrax: pip install 'dynexit\[solvers\]'"):
        begin_ode(decay, (), jnp.ones(2), jnp.ones(2), Solver())


@pytest.mark.parametrize("name", ["rtol", "atol", "t1", "first", "dt"])
def test_refusals(name):
    with pytest.raises(ValueError, match=f"`{name}` must be above 0, got 0.0"):
        Solver(**{name: 0.0})


def test_float64_reaches_tight_tolerances():
    with jax.enable_x64(True):
        solver, y = Solver(rtol=1e-10, atol=1e-13), jnp.ones(2, jnp.float64)
        rates = jnp.array([1.0, 3.0], jnp.float64)
        step, state = (
            ode_step(decay, lambda p, y: y, (), solver),
            begin_ode(decay, (), rates, y, solver),
        )
        assert all(leaf.dtype != jnp.float32 for leaf in jax.tree.leaves(state))
        _, output = dx.run_full(step, state, 200)
        np.testing.assert_allclose(output["logits"], np.exp([-1.0, -3.0]), rtol=1e-9)


def test_half_precision_is_refused():
    with pytest.raises(TypeError, match="`y` must be float32 or float64"):
        begin_ode(decay, (), jnp.ones(2), jnp.ones(2, jnp.bfloat16), Solver())


def test_a_solver_of_another_kind_is_refused():
    import diffrax

    field, steady = lambda p, t, y, x: -x * y, Solver(scheme=diffrax.Euler, dt=0.1)
    state = begin_ode(field, (), jnp.ones(2), jnp.ones(2), steady)
    with pytest.raises(
        ValueError, match="`solver` must be the one that `begin_ode` was given for this state"
    ):
        dx.run_all(ode_step(field, lambda p, y: y, (), Solver()), state, 3)


def test_rows_that_have_arrived_take_no_part_in_a_gradient():
    """The field has no derivative where the integration ends, and the first row is there first."""
    solver = Solver(rtol=1e-5, atol=1e-7, first=0.25)
    field = lambda p, t, y, x: p * x * jnp.sqrt(1 - t)

    def reached(p):
        x, y = jnp.array([1.0, 2.0]), jnp.zeros(2)
        step = ode_step(field, lambda p, y: y, p, solver)
        return dx.run_all(step, begin_ode(field, p, x, y, solver), 60)["logits"][-1].sum()

    value, slope = jax.value_and_grad(reached)(jnp.float32(1.0))
    np.testing.assert_allclose([value, slope], [2.0, 2.0], rtol=1e-3)  # 2/3 (1 + 2) p
