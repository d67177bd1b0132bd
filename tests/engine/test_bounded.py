"""run_bounded: the values of run_until, and gradients of the unrolled computation that each row
really did.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import dynexit as dx

EXECUTORS = ["masked", "compacted"]


def assert_close(got, want):
    """Equal but for rounding, whose measure is the largest entry of a leaf: gradients add up terms
    that cancel.
    """
    np.testing.assert_allclose(
        got, want, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(want).max()))
    )


@pytest.mark.parametrize("make", [oracle.homogeneous, oracle.staged, oracle.tied])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_values_equal_run_until(make, executor):
    problem = make(seed=1)
    criterion = dx.criteria.max_probability_above(0.6)
    until = dx.run_until(problem.step, problem.state, problem.depth, criterion, executor=executor)
    bounded = dx.run_bounded(problem.step, problem.state, problem.depth, criterion, executor)
    assert len(set(np.asarray(until.exit).tolist())) > 1
    chex.assert_trees_all_close(bounded, until, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blocks", [1, 2, 17])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_gradients_equal_those_of_each_rows_own_unrolled_program(blocks, executor):
    keys = jax.random.split(jax.random.key(0), 2)
    params, state = oracle.parameters(keys[0], blocks), oracle.batch_of(keys[1], 6)
    depths = np.random.default_rng(blocks).integers(1, blocks + 1, 6)

    def bounded(params, x):
        step = dx.stacked_step(oracle.block, oracle.head, params)
        halted = dx.run_bounded(step, {**state, "x": x}, blocks, oracle.leave_at(depths), executor)
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
    want = jax.jit(jax.grad(unrolled, argnums=(0, 1)))(params, state["x"])
    jax.tree.map(assert_close, got, want)


def counting(seed):
    """Integers in the state and in the output."""
    plain = oracle.homogeneous(seed=seed)
    block = lambda p, h: {**oracle.block(p, h), "age": h["age"] + 1}
    head = lambda p, h: {**oracle.head(p, h), "age": h["age"]}
    params = oracle.parameters(jax.random.key(seed), plain.depth)
    state = {**plain.state, "age": jnp.zeros(13, jnp.int32)}
    return plain._replace(step=dx.stacked_step(block, head, params), state=state)


@pytest.mark.parametrize("make", [oracle.staged, oracle.tied, oracle.switched, counting])
@pytest.mark.parametrize("tile", [None, 4])
def test_saving_compute_changes_no_gradient(make, tile):
    """Stages, tied and switched weights; every state that a row left with counts, and integers pass
    through.
    """
    problem = make(seed=1)
    criterion = oracle.leave_at(np.random.default_rng(3).integers(1, problem.exits + 1, 13))

    def loss(step, state, executor, tile):
        halted = dx.run_bounded(step, state, problem.depth, criterion, executor, tile)
        floats = [
            a
            for a in jax.tree.leaves((halted.output, halted.state))
            if jnp.issubdtype(a.dtype, jnp.inexact)
        ]
        return sum(
            (jnp.cos(a) * (1 + jnp.arange(a.size).reshape(a.shape) / a.size)).sum() for a in floats
        )

    gradient = lambda *args: jax.grad(lambda *s: loss(*s, *args), argnums=(0, 1), allow_int=True)(
        problem.step, problem.state
    )
    want, got = gradient("masked", None), gradient("compacted", tile)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        if a.dtype != jax.dtypes.float0:
            assert_close(a, b)


def test_rows_that_have_left_take_no_part_in_the_backward_pass():
    ran = []

    def block(p, h):
        jax.debug.callback(lambda n: ran.append(int(n)), jnp.int32(len(h)))
        return h * p

    def loss(p):
        step = dx.tied_step(block, lambda p, h: h, p)
        return dx.run_bounded(
            step, jnp.ones((5, 2)), 8, oracle.leave_at([1, 8, 3, 1, 3]), "compacted", tile=1
        ).output.sum()

    value, gradient = jax.value_and_grad(loss)(jnp.float32(2.0))
    jax.effects_barrier()
    assert float(value) == 2 * (2 * 2 + 256 + 2 * 8)
    assert float(gradient) == 2 * (2 + 8 * 128 + 2 * 3 * 4)
    assert ran == [1] * 2 * (1 + 8 + 3 + 1 + 3), (
        "each row its own steps, forward and once more on the way back"
    )


@pytest.mark.parametrize("hostile", [jnp.inf, jnp.nan])
def test_places_of_no_one_poison_no_gradient(hostile):
    """A norm whose gradient at zero is not finite; tiles of 4 for 3 rows."""
    step = dx.stacked_step(
        lambda p, h: h * p / jnp.sqrt((h**2).sum(-1, keepdims=True)),
        lambda p, h: h,
        jnp.full(5, 2.0),
    )
    loss = lambda x: dx.run_bounded(
        step, x, 5, oracle.leave_at([2, 5, 3]), "compacted", tile=4
    ).output.sum()
    assert np.isfinite(jax.grad(loss)(jnp.ones((3, 2)))).all()
    poisoned = jax.grad(loss)(jnp.ones((3, 2)).at[1].set(hostile))
    assert np.isfinite(poisoned[jnp.array([0, 2])]).all()


@pytest.mark.compiled
def test_memory_grows_with_the_logarithm_of_the_depth():
    """Four times the depth adds about four states to what a gradient holds; held whole, they would
    be 64, 256 and 1024.
    """
    rows = jnp.ones((64, 64))

    def temporary(depth: int, executor: str = "masked") -> float:
        """In states."""

        def loss(p):
            step = dx.tied_step(lambda p, h: jnp.tanh(h @ p), lambda p, h: h[:, :2], p)
            return dx.run_bounded(
                step, rows, depth, oracle.leave_at([depth] * 64), executor
            ).output.sum()

        program = jax.jit(jax.grad(loss)).lower(jnp.ones((64, 64))).compile()
        return program.memory_analysis().temp_size_in_bytes / rows.nbytes

    held = [temporary(depth) for depth in (16, 64, 256, 1024)]
    assert 64 < temporary(64, "compacted") < 80, "the states on entering every step, and a few more"
    steps = np.diff(held)
    assert held[-1] < 120
    assert (steps < 16).all() and steps.max() < 1.5 * steps.min() + 1, held


def test_data_parallel_gradients_inside_shard_map():
    """Weights that all devices hold get the sum of all devices' gradients."""
    problem = oracle.homogeneous()
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    state = jax.tree.map(lambda a: a[:12], problem.state)
    leave = dx.criteria.max_probability_above(0.6)

    def gradient(executor):
        def loss(step, state):
            return (
                dx.run_bounded(step, state, problem.depth, leave, executor).output["logits"] ** 2
            ).sum()

        return lambda step, state: jax.grad(loss, allow_int=True)(step, state)

    spec = jax.sharding.PartitionSpec
    spread = lambda executor: jax.jit(
        jax.shard_map(
            gradient(executor), mesh=mesh, in_specs=(spec(), spec("data")), out_specs=spec()
        )
    )
    want = gradient("masked")(problem.step, state)
    for executor in EXECUTORS:
        got = spread(executor)(problem.step, state)
        jax.tree.map(assert_close, got, want)


def test_steps_after_the_last_row_left_are_skipped_in_both_directions():
    ran = []

    def block(p, h):
        jax.debug.callback(lambda _: ran.append(1), h[0, 0])
        return h * p

    def loss(p):
        halted = dx.run_bounded(
            dx.tied_step(block, lambda p, h: h, p), jnp.ones((2, 2)), 16, oracle.leave_at([1, 3])
        )
        return halted.output.sum()

    value, gradient = jax.value_and_grad(loss)(jnp.float32(2.0))
    jax.effects_barrier()
    assert float(value) == 2 * 2.0 + 2 * 8.0
    assert float(gradient) == 2 * 1.0 + 2 * 3 * 4.0
    assert 3 <= len(ran) <= 9, (
        "forward, and once more for each checkpointed chunk, but not for the 13 steps that nobody took"
    )


def test_refuses_something_that_is_no_criterion():
    problem = oracle.homogeneous()
    with pytest.raises(TypeError, match=r"`criterion` must be a dx.Criterion, got float"):
        dx.run_bounded(problem.step, problem.state, 6, 0.9)
    with pytest.raises(
        ValueError, match=r"`executor` must be one of 'masked', 'compacted', got 'per_row'"
    ):
        dx.run_bounded(
            problem.step, problem.state, 6, dx.criteria.max_probability_above(0.9), "per_row"
        )


def towards_zero(p, h):
    """A step of length p towards 0, where it has no derivative: 0 / 0."""
    far = jnp.linalg.norm(h, axis=-1, keepdims=True)
    return h * jnp.maximum(far - p, 0.0) / far


@pytest.mark.parametrize("executor", ["masked", "compacted"])
def test_a_row_that_exits_where_a_step_has_no_derivative(executor):
    rows = jnp.array([[0.3, 0.4], [6.0, 8.0]])  # 0.5 and 10 away; the first is at 0 after one step
    distance = lambda i, h, m: (jnp.abs(h).sum(-1), m)
    there = dx.Criterion(distance, lambda i, score, m: (score == 0.0, m))
    head = lambda p, h: h
    for read in (lambda halted: halted.output, lambda halted: halted.state):

        def total(p, rows, read=read):
            step = dx.tied_step(towards_zero, head, p)
            return read(dx.run_bounded(step, rows, 8, there, executor=executor)).sum()

        slope, moved = jax.grad(total, (0, 1))(jnp.float32(1.0), rows)
        np.testing.assert_allclose(slope, -8 * (0.6 + 0.8), rtol=1e-5)
        alone = jax.grad(lambda h: towards_zero(8.0, h).sum())(rows[1])
        np.testing.assert_allclose(moved, [[0.0, 0.0], alone], rtol=1e-4)


@pytest.mark.parametrize("executor", ["masked", "compacted"])
def test_rows_that_do_not_enter_a_stage_take_no_part_in_its_gradient(executor):
    unit = lambda p, h: (h @ p) / jnp.linalg.norm(h @ p, axis=-1, keepdims=True)
    widen = lambda p, h: jnp.concatenate([unit(p, h), h], axis=1)
    keys = jax.random.split(jax.random.key(0), 2)
    rows = 1 + jax.random.normal(keys[0], (5, 4))
    w = jnp.stack([jnp.eye(4)] * 6) + 0.1 * jax.random.normal(keys[1], (6, 4, 4))
    depths = np.array([1, 2, 3, 6, 1])

    def total(w):
        read = lambda p, h: h[:, :4]
        stages = (
            dx.stacked_step(unit, read, w[:3]),
            dx.stacked_step(unit, read, w[3:5]),
            dx.stacked_step(widen, read, w[5:]),
        )
        leave = oracle.leave_at(depths)
        out = dx.run_bounded(stages, rows, (3, 2, 1), leave, executor=executor).output
        return (out[:, 0] ** 3).sum()

    def looped(w):
        found = 0.0
        for row, depth in zip(rows, depths, strict=True):
            for p in w[:depth]:
                row = unit(p, row[None])[0]
            found += row[0] ** 3
        return found

    got, want = jax.grad(total)(w), jax.grad(looped)(w)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_criterion_without_a_derivative_changes_no_gradient():
    """Its memory takes a square root of zero at every exit."""
    root = dx.Criterion(
        lambda i, h, m: (jnp.sqrt(0.0 * h[:, 0]), m + jnp.sqrt(0.0 * h[:, 0])),
        lambda i, score, m: (score > 1.0, m),
        init_score=lambda batch, output: jnp.zeros(batch),
    )
    for executor in ("masked", "compacted"):

        def total(p, executor=executor):
            step = dx.tied_step(lambda p, h: h * p, lambda p, h: h, p)
            return dx.run_bounded(step, jnp.ones((2, 1)), 4, root, executor=executor).output.sum()

        np.testing.assert_allclose(jax.grad(total)(jnp.float32(2.0)), 2 * 4 * 2.0**3)
