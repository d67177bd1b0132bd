"""run_bounded: the values of run_until, and gradients of the unrolled computation that each row really did."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import dynexit as dx


@pytest.mark.parametrize("make", [oracle.homogeneous, oracle.staged, oracle.tied])
def test_values_equal_run_until(make):
    problem = make(seed=1)
    criterion = dx.criteria.max_probability_above(0.6)
    until = dx.run_until(problem.step, problem.state, problem.depth, criterion, schedule="masked")
    bounded = dx.run_bounded(problem.step, problem.state, problem.depth, criterion)
    assert len(set(np.asarray(until.exit).tolist())) > 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), bounded, until)


@pytest.mark.parametrize("blocks", [1, 2, 5, 7, 9])
def test_gradients_equal_those_of_each_rows_own_unrolled_program(blocks):
    keys = jax.random.split(jax.random.key(0), 2)
    params, state = oracle.parameters(keys[0], blocks), oracle.batch_of(keys[1], 6)
    depths = np.random.default_rng(blocks).integers(1, blocks + 1, 6)

    def bounded(params, x):
        step = dx.stacked_step(oracle.block, oracle.head, params)
        halted = dx.run_bounded(step, {**state, "x": x}, blocks, oracle.leave_at(depths))
        return (halted.output["logits"] ** 2).sum() + halted.state["x"].sum()

    def unrolled(params, x):
        total = 0.0
        for b, depth in enumerate(depths):
            h = oracle.row_of({**state, "x": x}, b)
            for i in range(depth):
                p = jax.tree.map(lambda a, i=i: a[i], params)
                h = oracle.block(p, h)
            total += (oracle.head(p, h)["logits"] ** 2).sum() + h["x"].sum()
        return total

    got = jax.grad(bounded, argnums=(0, 1))(params, state["x"])
    want = jax.grad(unrolled, argnums=(0, 1))(params, state["x"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)


def test_steps_after_the_last_row_left_are_skipped_in_both_directions():
    ran = []

    def block(p, h):
        jax.debug.callback(lambda _: ran.append(1), h[0, 0])
        return h * p

    def loss(p):
        halted = dx.run_bounded(dx.tied_step(block, lambda p, h: h, p), jnp.ones((2, 2)), 16, oracle.leave_at([1, 3]))
        return halted.output.sum()

    value, gradient = jax.value_and_grad(loss)(jnp.float32(2.0))
    jax.effects_barrier()
    assert float(value) == 2 * 2.0 + 2 * 8.0
    assert float(gradient) == 2 * 1.0 + 2 * 3 * 4.0
    assert 3 <= len(ran) <= 9, "forward, and once more for each checkpointed chunk, but not for the 13 steps that nobody took"


def test_refuses_something_that_is_no_criterion():
    problem = oracle.homogeneous()
    with pytest.raises(TypeError, match=r"`criterion` must be a dx.Criterion, got float"):
        dx.run_bounded(problem.step, problem.state, 6, 0.9)
