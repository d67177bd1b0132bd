"""A step that was given the state of another: what it wants is named, and the function that makes
it.
"""

import jax.numpy as jnp
import pytest

import dynexit as dx
from dynexit.solvers.anderson import anderson
from dynexit.solvers.fixed_point import begin_fixed_point, fixed_point_step
from dynexit.solvers.ode import Solver, begin_ode, ode_step
from dynexit.transforms.averaging import averaged_step

Z = jnp.ones((2, 3))
HALVING = lambda p, x, z: 0.5 * z + x
READ = lambda p, z: z
FIELD = lambda p, t, y, x: -x * y


def halting():
    says = lambda p, n: {"logits": n, "halt_logit": n[:, 0]}
    return averaged_step(dx.tied_step(lambda p, n: n + 1, says, ()))


@pytest.mark.parametrize(
    "step, state, text",
    [
        (
            halting,
            lambda: Z,
            "`state` must come from `averaging_state`, a dict with ['inner', 'mean', 'spent']; got ",
        ),
        (
            lambda: fixed_point_step(HALVING, READ, ()),
            lambda: {"z": Z},
            "`state` must come from `begin_fixed_point`",
        ),
        (
            lambda: ode_step(FIELD, READ, (), Solver()),
            lambda: {"y": Z},
            "`state` must come from `begin_ode`",
        ),
    ],
)
def test_the_function_that_makes_the_state_is_named(step, state, text):
    with pytest.raises(TypeError) as error:
        dx.run_all(step(), state(), 2)
    assert text in str(error.value)


@pytest.mark.parametrize(
    "of_step, of_state", [(anderson(), None), (None, anderson()), (anderson(3), anderson(4))]
)
def test_a_state_remembers_for_one_way_of_mixing(of_step, of_state):
    with pytest.raises(
        ValueError,
        match="`mixing` must be the one that `begin_fixed_point` was given for this state",
    ):
        dx.run_all(
            fixed_point_step(HALVING, READ, (), of_step), begin_fixed_point(Z, Z, of_state), 2
        )


def test_the_right_ones_run():
    assert (
        dx.run_all(
            fixed_point_step(HALVING, READ, (), anderson()), begin_fixed_point(Z, Z, anderson()), 2
        )["logits"].shape[0]
        == 2
    )
    state = begin_ode(FIELD, (), jnp.ones(2), jnp.ones(2), Solver())
    assert dx.run_all(ode_step(FIELD, READ, (), Solver()), state, 2)["logits"].shape == (2, 2)
