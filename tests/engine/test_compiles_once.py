"""Eager calls compile once for equal functions and shapes, and warn where the functions are new at
every call; a depth of None is the step's own.
"""

import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import dynexit as dx
from dynexit.engine import recompiles

X = jnp.arange(12.0).reshape(3, 4) / 12
WEIGHTS = jnp.stack([jnp.eye(4) * (k + 1) for k in range(3)])


def read(p, h):
    return h


def score(i, output, memory):
    return output, memory


def counted():
    """A step that counts how often its block is traced."""
    traces = []

    def block(p, h):
        traces.append(None)
        return jnp.tanh(h @ p)

    return dx.stacked_step(block, read, WEIGHTS), traces


@pytest.fixture
def seen(monkeypatch):
    """No code was compiled before."""
    monkeypatch.setattr(recompiles, "_compiled", {})


def above(t):
    return dx.Criterion(score, lambda i, score, memory: (score[:, 0] > t, memory))


RUNS = {
    "run_all": lambda step, x: dx.run_all(step, x),
    "run_full": lambda step, x: dx.run_full(step, x),
    "run_until": lambda step, x: dx.run_until(step, x, criterion=LEAVE),
    "run_bounded, masked": lambda step, x: dx.run_bounded(step, x, criterion=LEAVE),
    "run_bounded, compacted": lambda step, x: dx.run_bounded(
        step, x, criterion=LEAVE, executor="compacted"
    ),
    "run_stream": lambda step, x: dx.run_stream(step, x, criterion=LEAVE),
    "run_sharded": lambda step, x: dx.run_sharded(
        step, x, criterion=LEAVE, mesh=jax.make_mesh((1,), ("data",))
    ),
}
LEAVE = above(0.3)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_second_eager_call_traces_and_compiles_nothing(run, caplog):
    step, traces = counted()
    first = run(step, X)
    once = len(traces)
    assert once > 0
    with jax.log_compiles():
        caplog.clear()
        second = run(step, 2 * X / 2)
        third = run(dx.stacked_step(step.apply.func.block, read, WEIGHTS + 0), X)
    assert len(traces) == once
    assert [r.message for r in caplog.records if "run_" in r.getMessage()] == []
    chex.assert_trees_all_equal(first, second)
    chex.assert_trees_all_equal(first, third)


@pytest.mark.parametrize("run", [dx.run_all, dx.run_full])
def test_values_and_gradients_are_those_of_a_python_loop(run):
    block = lambda p, h: jnp.tanh(h @ p)

    def by_hand(weights):
        h, outputs = X, []
        for p in weights:
            h = block(p, h)
            outputs.append(h)
        return jnp.stack(outputs) if run is dx.run_all else (h, h)

    ours = lambda weights: run(dx.stacked_step(block, read, weights), X)
    loss = lambda f: lambda w: sum(jnp.sum(a**2) for a in jax.tree.leaves(f(w)))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, ours(WEIGHTS), by_hand(WEIGHTS))
    gradient = jax.grad(loss(by_hand))(WEIGHTS)
    close(jax.grad(loss(ours))(WEIGHTS), gradient)
    close(jax.jit(jax.grad(loss(ours)))(WEIGHTS), gradient)
    # a step that closes over what is differentiated, and one that is mapped over
    closing = lambda w: run(dx.Step(lambda i: w[i], lambda p, i, h: (block(p, h),) * 2), X, 3)
    close(jax.grad(loss(closing))(WEIGHTS), gradient)
    several = jax.vmap(ours)(jnp.stack([WEIGHTS, 2 * WEIGHTS]))
    jax.tree.map(lambda a, b: close(a[1], b), several, ours(2 * WEIGHTS))


def test_inside_of_jit_the_program_has_no_call_of_its_own():
    step, _ = counted()
    program = jax.make_jaxpr(lambda step, x: dx.run_all(step, x))(step, X)
    assert "run_all" not in str(program)


def test_explicit_axes_and_shard_map():
    mesh = jax.make_mesh((2,), ("data",))
    rows = jax.sharding.PartitionSpec("data")
    x = jnp.concatenate([X, X + 0.1])
    step, _ = counted()
    wanted = dx.run_all(step, x)
    with jax.set_mesh(mesh):
        spread = jax.device_put(x, jax.NamedSharding(mesh, rows))
        explicit = dx.run_all(step, spread)
        out = jax.sharding.PartitionSpec(None, "data")
        mapped = jax.shard_map(lambda x: dx.run_all(step, x), in_specs=rows, out_specs=out)(spread)
    np.testing.assert_allclose(explicit, wanted, rtol=1e-6)
    np.testing.assert_allclose(mapped, wanted, rtol=1e-6)


def test_the_third_compilation_of_the_same_code_warns_once(seen):
    step = dx.stacked_step(lambda p, h: h @ p, read, WEIGHTS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for t in (0.1, 0.2):
            dx.run_until(step, X, criterion=above(t))
        assert caught == []
        for t in (0.3, 0.4, 0.5):
            dx.run_until(step, X, criterion=above(t))
    (warning,) = caught
    assert "`run_until`" in str(warning.message) and "Partial" in str(warning.message)
    assert warning.filename == __file__


def test_lambdas_of_a_step_count_as_well(seen):
    with pytest.warns(UserWarning, match="`run_all`"):
        for _ in range(3):
            dx.run_all(dx.stacked_step(lambda p, h: h @ p, lambda p, h: h, WEIGHTS), X)


def test_other_code_shapes_and_settings_do_not_warn(seen):
    step = dx.stacked_step(lambda p, h: h @ p, read, WEIGHTS)
    rules = (lambda o: o[:, 0] > 0.3, lambda o: o[:, 1] > 0.3, lambda o: o[:, 2] > 0.3)

    def by(rule):
        return dx.Criterion(score, lambda i, score, memory: (rule(score), memory))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rule in rules:  # one closure's code, other functions inside
            dx.run_until(step, X, criterion=by(rule))
        for rows in (1, 2, 3):
            dx.run_until(step, X[:rows], criterion=above(0.3))
        for blocks in (1, 2, 3):
            dx.run_all(dx.tied_step(lambda p, h: h * p, read, jnp.float32(2), blocks), X, 6)
        for size in (1, 2, 3):
            dx.run_until(step, X, criterion=above(0.3), tile=dx.Tiling((size,), (1.0,)))
        for t in (0.1, 0.2, 0.3, 0.4):  # thresholds are arguments of the program
            dx.run_until(step, X, criterion=dx.criteria.max_probability_above(t))


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_depth_of_none_is_the_step_s_own(run):
    step, _ = counted()
    part = dx.Step(step.select, step.apply, depth=2)
    first_two = dx.stacked_step(step.apply.func.block, read, WEIGHTS[:2])
    chex.assert_trees_all_equal(run(part, X), run(first_two, X))
    with pytest.raises(ValueError, match="`depth`"):
        run(dx.tied_step(jnp.matmul, read, WEIGHTS[0]), X)


def test_a_depth_of_none_for_stages_and_for_tune():
    problem = oracle.staged()
    steps = [
        dx.Step(s.select, s.apply, s.blocks, d)
        for s, d in zip(problem.step, problem.depth, strict=True)
    ]
    wanted = dx.run_all(problem.step, problem.state, problem.depth)
    for depth in (None, [None, *problem.depth[1:]]):
        chex.assert_trees_all_equal(dx.run_all(steps, problem.state, depth), wanted)
    step, _ = counted()
    assert len(dx.tune(step, X, sizes=(1,), repeats=1).tile) == 1
    with pytest.raises(ValueError, match=r"`depth\[0\]`"):
        dx.run_all([dx.tied_step(jnp.matmul, read, WEIGHTS[0])], X)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_leaves_that_are_no_arrays_are_refused_by_name(run):
    leaf = jax.tree_util.Partial(lambda act, w, i, h: (act(h), h), jnp.tanh)
    with pytest.raises(TypeError, match="`step`"):
        run(dx.Step(lambda i: (), leaf, depth=3), X)
