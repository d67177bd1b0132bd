"""Truncated backpropagation: zero before the last k steps, exact after, one program for all numbers
of steps.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import dynexit as dx
from dynexit.engine.gradients.truncated import run_truncated

D, MOST = 3, 8
KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = {"w": 0.5 * jax.random.normal(KEYS[0], (D, D)), "u": jax.random.normal(KEYS[1], (D, D))}
X, H = jax.random.normal(KEYS[2], (2, D)), jax.random.normal(KEYS[3], (2, D))


def block(p, state):
    return {"input": state["input"], "h": jnp.tanh(state["h"] @ p["w"] + state["input"] @ p["u"])}


def step(params):
    return dx.tied_step(block, lambda p, state: state["h"], params)


@jax.jit
def truncated(params, x, h, free, steps):
    return (
        run_truncated(step(params), {"input": x, "h": h}, free, steps, MOST, injected=("input",))[1]
        ** 2
    ).sum()


def reference(params, x, h, free, steps):
    """A Python loop that detaches weights, input and state of the free steps."""
    still, state = jax.lax.stop_gradient((params, x)), {"input": x, "h": h}
    for _ in range(free):
        state = {
            "input": x,
            "h": jax.lax.stop_gradient(block(still[0], {**state, "input": still[1]})["h"]),
        }
    for _ in range(steps):
        state = block(params, state)
    return (state["h"] ** 2).sum()


@pytest.mark.parametrize("free,steps", [(0, 1), (0, 8), (3, 5), (12, 8), (5, 1)])
def test_value_and_gradient_are_the_loop(free, steps):
    found = jax.value_and_grad(truncated, argnums=(0, 1, 2))(PARAMS, X, H, free, steps)
    wanted = jax.value_and_grad(reference, argnums=(0, 1, 2))(PARAMS, X, H, free, steps)
    chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-6)
    beginning = found[1][2]
    assert (np.asarray(beginning) == 0).all() == (free > 0), (
        "the first state has a gradient only where all steps carry one"
    )
    assert np.abs(found[1][1]).max() > 0, "the injected input always has one"


def test_golden_of_twenty_steps_the_last_eight_carry_gradients():
    """dL/ds_12 is that of the loop and dL/ds_11 exactly 0, where s_i is the state after i steps."""

    def pushed(params, i, state):
        return step(params).apply(params, i, {**state, "h": state["h"] + params["push"][i]})

    def loss(run, push):
        state = {"input": X, "h": H}
        return (
            run(dx.Step(Partial(lambda p, i: p, {**PARAMS, "push": push}), pushed), state)[1] ** 2
        ).sum()

    def loop(step, state):
        for i in range(20):
            state, output = step.apply(step.select(i), i, state)
        return state, output

    truncated = lambda step, state: run_truncated(step, state, 12, 8, MOST, injected=("input",))
    found, wanted = (
        jax.jit(jax.grad(lambda push, run=run: loss(run, push)))(jnp.zeros((20, 2, D)))
        for run in (truncated, loop)
    )
    assert not found[:12].any() and np.abs(wanted[11]).max() > 0
    assert (np.abs(found[12:]).max(axis=(1, 2)) > 0).all()
    np.testing.assert_allclose(found[12:], wanted[12:], rtol=1e-5, atol=1e-9)


def test_one_program_serves_all_numbers_of_steps():
    truncated(PARAMS, X, H, 1, 2)
    before = truncated._cache_size()
    for free, steps in ((0, 8), (7, 3), (20, 1)):
        truncated(PARAMS, X, H, free, steps)
    assert truncated._cache_size() == before


def test_steps_that_are_not_asked_for_are_skipped():
    calls = []

    def counted(p, state):
        jax.debug.callback(lambda: calls.append(1))
        return block(p, state)

    f = jax.jit(
        lambda free, steps: run_truncated(
            dx.tied_step(counted, lambda p, s: s["h"], PARAMS),
            {"input": X, "h": H},
            free,
            steps,
            MOST,
        )
    )
    jax.block_until_ready(f(2, 3))
    jax.effects_barrier()
    assert len(calls) == 5


def test_refusals():
    with pytest.raises(
        ValueError, match=r"`injected` names \['e'\], which the state does not have"
    ):
        run_truncated(step(PARAMS), {"input": X, "h": H}, 0, 1, 1, injected=("e",))
    with pytest.raises(ValueError, match="`most` must be at least 1"):
        run_truncated(step(PARAMS), {"input": X, "h": H}, 0, 1, 0)
    for free, steps, text in (
        (0, 5, "`steps` must be at least 1 and at most 2, got 5"),
        (-3, 1, "`free` must be at least 0, got -3"),
    ):
        with pytest.raises(ValueError, match=text):
            run_truncated(step(PARAMS), {"input": X, "h": H}, free, steps, 2)
    with pytest.raises(TypeError, match=r"`steps` must be an integer, got 1.9"):
        run_truncated(step(PARAMS), {"input": X, "h": H}, 0, 1.9, 2)
