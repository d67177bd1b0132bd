"""Streaming gives what run_until gives, in the order of the queue, with no slot waiting for another."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import dynexit as dx


@pytest.mark.parametrize("slots", [1, 2, 5, 13, 40, None])
@pytest.mark.parametrize(
    "criterion",
    [
        dx.criteria.max_probability_above(jnp.linspace(0.8, 0.4, 8)),
        dx.criteria.patience(2),
        dx.criteria.saturation_above(0.9),
        dx.criteria.cumulative_halting_above(0.8),
    ],
    ids=["thresholds by exit", "patience", "saturation", "halting"],
)
def test_equals_the_python_loop_in_the_order_of_the_queue(slots, criterion):
    problem = oracle.tied(rows=13, blocks=9, seed=2)
    expected = oracle.run_rows(problem, criterion)
    assert len({r.exit for r in expected}) > 1
    oracle.assert_equal(dx.run_stream(problem.step, problem.state, 9, criterion, slots=slots), expected, tolerance=1e-4)


def test_the_loop_turns_as_often_as_a_refilled_pool_needs():
    depths = np.array([7, 1, 1, 1, 3, 2, 9, 1, 1, 2])
    problem = oracle.tied(rows=len(depths), blocks=9)
    halted = dx.run_stream(problem.step, problem.state, 9, oracle.leave_at(depths), slots=3)
    np.testing.assert_array_equal(halted.exit_depth, depths)
    free, ends = [0, 0, 0], []
    for depth in depths:  # the oracle: each row takes the slot that is free first
        k = int(np.argmin(free))
        free[k] += depth
        ends.append(free[k])
    assert int(halted.rows_executed) == 3 * max(ends)
    assert int(halted.rows_executed) < 10 * max(depths)


def test_a_nan_runs_to_the_limit_and_poisons_no_other():
    problem = oracle.tied(rows=6, blocks=5)
    state = {**problem.state, "x": problem.state["x"].at[2].set(jnp.nan)}
    halted = dx.run_stream(problem.step, state, 5, dx.criteria.max_probability_above(0.2), slots=2)
    assert int(halted.exit_depth[2]) == 5 and int(halted.nan_exits[2]) == 5
    others = np.array([0, 1, 3, 4, 5])
    assert int(halted.nan_exits[others].sum()) == 0
    clean = dx.run_stream(problem.step, problem.state, 5, dx.criteria.max_probability_above(0.2), slots=2)
    np.testing.assert_array_equal(halted.exit[others], clean.exit[others])
    np.testing.assert_allclose(halted.output["logits"][others], clean.output["logits"][others], rtol=1e-5, atol=1e-5)


def test_refusals():
    problem = oracle.tied()
    leave = dx.criteria.patience(1)
    with pytest.raises(TypeError, match=r"`step` must be one weight-tied dx\.Step"):
        dx.run_stream([problem.step], problem.state, 9, leave)
    with pytest.raises(ValueError, match="`slots` must be at least 1, got 0"):
        dx.run_stream(problem.step, problem.state, 9, leave, slots=0)
    with pytest.raises(ValueError, match="`queue` is an empty batch"):
        dx.run_stream(problem.step, jax.tree.map(lambda a: a[:0], problem.state), 9, leave)
    halving = dx.stacked_step(oracle.halve, oracle.head, oracle.parameters(jax.random.key(0), 2))
    with pytest.raises(ValueError, match=r"changed state\['x'\] from float32\[13, 4, 6\] to float32\[13, 2, 6\]"):
        dx.run_stream(halving, problem.state, 2, leave)
