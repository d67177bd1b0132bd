"""The engine and the solvers under JAX's debugging modes, beside their results without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.solvers.anderson import anderson
from dynexit.solvers.fixed_point import begin_fixed_point, fixed_point, fixed_point_step
from dynexit.solvers.newton_scan import newton_scan
from dynexit.solvers.ode import Solver, begin_ode, ode_step
from dynexit.transforms.per_token import per_token

MODES = {
    "nans": lambda: jax.debug_nans(True),
    "infs": lambda: jax.debug_infs(True),
    "leaks": jax.checking_leaks,
    "transfers": lambda: jax.transfer_guard("disallow"),
    "no jit": jax.disable_jit,
    "checks": lambda: jax.enable_checks(True),
}
WEIGHTS = 0.1 * jax.random.normal(jax.random.key(0), (4, 3, 3)) + jnp.eye(3)[None]
ROWS = jax.random.normal(jax.random.key(1), (8, 3))
ONE, ZEROS = jnp.ones(()), jnp.zeros((8, 3))
FIRST, COLUMN, TIMES = WEIGHTS[0], jnp.zeros((8, 1)), ROWS[:, :, None]
STEP = dx.stacked_step(lambda p, h: jnp.tanh(h @ p), lambda p, h: h, WEIGHTS)
TIED = dx.tied_step(lambda p, h: jnp.tanh(h @ p), lambda p, h: h, WEIGHTS[0])
LEAVE, PATIENT = dx.criteria.max_probability_above(0.45), dx.criteria.patience(1)
AT = dx.criteria.at_depth(jnp.array([1, 4, 2, 3, 1, 1, 4, 2]))
BEGUN = begin_fixed_point(ROWS, ZEROS)
squared = lambda halted: (halted.output**2).sum()


def continuous(p, z, x):
    return jnp.tanh(0.3 * z @ p + x)


def by_gradient(f, *arguments):
    return jax.jit(jax.value_and_grad(f, allow_int=True))(*arguments)


def equation(p, rows):
    solver, field = Solver(rtol=1e-3), lambda p, t, y, x: -p * x * y
    step = ode_step(field, lambda p, y: y, p, solver)
    return step, begin_ode(field, p, jnp.abs(rows[:, 0]), rows, solver)


def tokens(rows):
    step = dx.tied_step(lambda p, s: {"h": jnp.tanh(s["h"] @ p)}, lambda p, s: s["h"], WEIGHTS[0])
    return per_token(step, {"h": rows[:, None]}, LEAVE)


RUNS = {
    "until": lambda: [
        dx.run_until(STEP, ROWS, 4, rule, executor)
        for rule in (AT, PATIENT)
        for executor in ("masked", "compacted", "per_row")
    ],
    "stages": lambda: dx.run_until((STEP, TIED), ROWS, (4, 1), LEAVE),
    "stream": lambda: [dx.run_stream(step, ROWS, 4, AT, slots=3) for step in (STEP, TIED)],
    "all": lambda: (
        dx.run_all(STEP, ROWS, 4),
        dx.run_full(STEP, ROWS, 4),
        dx.replay(PATIENT, dx.run_all(TIED, ROWS, 4)),
        dx.check_row_independence(STEP, ROWS),
    ),
    "bounded": lambda: [
        by_gradient(lambda s, e=e: squared(dx.run_bounded(s, ROWS, 4, AT, executor=e)), STEP)
        for e in ("masked", "compacted")
    ],
    "truncated": lambda: by_gradient(
        lambda s: dx.engine.run_truncated(s, ROWS, free=1, steps=2, most=2)[1].sum(), TIED
    ),
    "tokens": lambda: by_gradient(
        lambda rows: dx.run_all(*tokens(rows), 4)["output"][-1].sum(), ROWS
    ),
    "ode": lambda: by_gradient(
        lambda p: dx.run_all(*equation(p, ROWS), 12)["logits"][-1].sum(), ONE
    ),
    "ode, exits": lambda: jax.jit(
        lambda p: dx.run_until(*equation(p, ROWS), 20, dx.criteria.gate_above(0.999)).output
    )(ONE),
    "fixed point": lambda: [
        by_gradient(
            lambda p, m=m: fixed_point(
                lambda p, x, z: continuous(p, z, x), p, ROWS, ZEROS, mixing=m
            ).state.sum(),
            FIRST,
        )
        for m in (None, anderson(2))
    ],
    "fixed point, exits": lambda: jax.jit(
        lambda p: dx.run_until(
            fixed_point_step(lambda p, x, z: continuous(p, z, x), lambda p, z: z, p),
            BEGUN,
            40,
            dx.criteria.residual_below(1e-3),
        )
    )(FIRST),
    "newton": lambda: by_gradient(
        lambda p: newton_scan(lambda p, h, x: jnp.tanh(p * h + x), p, TIMES, COLUMN).states.sum(),
        ONE,
    ),
    "from zero": lambda: jax.jit(lambda p: fixed_point(lambda p, x, z: p * z, p, ROWS, ZEROS))(ONE),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", RUNS)
def test_runs_under_a_debugging_mode(mode, name):
    if name.startswith("ode") and mode == "transfers":
        pytest.skip("diffrax itself makes arrays of Python's numbers while it is traced")
    wanted = jax.tree.map(np.asarray, RUNS[name]())
    if mode == "leaks":
        jax.clear_caches()
    with MODES[mode]():
        found = jax.block_until_ready(RUNS[name]())
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    jax.tree.map(lambda a, b: None if a.dtype == jax.dtypes.float0 else close(a, b), found, wanted)


def test_debug_infs_outside_of_jit():
    """What is made eagerly is looked at, entry by entry."""
    with jax.debug_infs(True), jax.debug_nans(True):
        solved = fixed_point(lambda p, x, z: p * z + x, ONE * 0.5, ROWS, ZEROS)
        np.testing.assert_allclose(solved.state, 2 * ROWS, rtol=1e-2)
        begun = begin_fixed_point(ROWS, ZEROS)
        assert np.isfinite(begun["residual"]).all()
        rule = dx.criteria.residual_below(1e-3)
        step = fixed_point_step(lambda p, x, z: p * z + x, lambda p, z: z, ONE * 0.5)
        assert int(dx.run_until(step, begun, 40, rule).exit_depth.max()) < 40
        value, slope = jax.value_and_grad(
            lambda p: dx.run_all(*equation(p, ROWS), 12)["logits"][-1].sum()
        )(ONE)
        assert np.isfinite([value, slope]).all()
