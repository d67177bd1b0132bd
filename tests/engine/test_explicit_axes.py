"""Meshes of Explicit axes, as `jax.make_mesh` makes them: rows and weights on one, or one in the
context alone.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import dynexit as dx

WEIGHTS = 0.1 * jax.random.normal(jax.random.key(0), (4, 3, 3)) + jnp.eye(3)[None]
ROWS = jax.random.normal(jax.random.key(1), (8, 3))
block, head = (lambda p, h: jnp.tanh(h @ p)), (lambda p, h: h)
AT = dx.criteria.at_depth(jnp.array([1, 4, 2, 3, 1, 1, 4, 2]))
LEAVE = dx.criteria.any_of(dx.criteria.patience(2), dx.criteria.max_probability_above(0.45))

RUNS = {
    "until": lambda w, x: [
        dx.run_until(dx.stacked_step(block, head, w), x, 4, rule, e)
        for rule in (AT, LEAVE)
        for e in ("compacted", "masked", "per_row")
    ],
    "stages": lambda w, x: dx.run_until(
        (dx.stacked_step(block, head, w), dx.tied_step(block, head, w[0])), x, (4, 1), AT
    ),
    "stream": lambda w, x: [
        dx.run_stream(step, x, 4, AT, slots=2)
        for step in (dx.stacked_step(block, head, w), dx.tied_step(block, head, w[0]))
    ],
    "bounded": lambda w, x: [
        dx.run_bounded(dx.stacked_step(block, head, w), x, 4, AT, executor=e)
        for e in ("masked", "compacted")
    ],
    "gradient": lambda w, x: [
        jax.jit(
            jax.grad(
                lambda w, x, e=e: (
                    dx.run_bounded(dx.stacked_step(block, head, w), x, 4, AT, executor=e).output
                    ** 2
                ).sum()
            )
        )(w, x)
        for e in ("masked", "compacted")
    ],
    "all": lambda w, x: (
        dx.run_all(dx.stacked_step(block, head, w), x, 4),
        dx.run_full(dx.stacked_step(block, head, w), x, 4),
        dx.replay(LEAVE, dx.run_all(dx.stacked_step(block, head, w), x, 4)),
    ),
    "independence": lambda w, x: dx.check_row_independence(dx.stacked_step(block, head, w), x),
    "inside jit": lambda w, x: jax.jit(
        lambda w, x: dx.run_until(dx.stacked_step(block, head, w), x, 4, AT)
    )(w, x),
}


@pytest.fixture(scope="module")
def mesh():
    mesh = jax.make_mesh((4,), ("data",))
    assert mesh.axis_types == (jax.sharding.AxisType.Explicit,)
    return mesh


def same(found, wanted):
    def close(path, a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    drop = lambda r: r._replace(rows_executed=()) if isinstance(r, dx.Halted) else r
    bare = lambda tree: jax.tree.map(drop, tree, is_leaf=lambda r: isinstance(r, dx.Halted))
    jax.tree_util.tree_map_with_path(close, bare(found), bare(wanted))


@pytest.mark.parametrize("context", [False, True], ids=["no context", "set_mesh"])
@pytest.mark.parametrize("spread", ["nothing", "rows", "rows and weights"])
@pytest.mark.parametrize("name", RUNS)
def test_results_are_those_of_one_device(mesh, name, spread, context):
    if name == "gradient" and spread != "nothing" and not context:
        pytest.skip("jax itself wants `jax.set_mesh` for gradients of arrays on Explicit axes")
    w, x = WEIGHTS, ROWS
    wanted = RUNS[name](w, x)
    if spread != "nothing":
        x = jax.device_put(x, NamedSharding(mesh, P("data")))
    if spread == "rows and weights":
        w = jax.device_put(w, NamedSharding(mesh, P()))
    with jax.set_mesh(mesh) if context else contextlib.nullcontext():
        found = jax.block_until_ready(RUNS[name](w, x))
    same(jax.tree.map(np.asarray, found), wanted)
    if name == "until" and spread != "nothing":
        assert found[0].output.sharding.is_equivalent_to(NamedSharding(mesh, P("data")), 2)
        assert jax.typeof(found[0].output).sharding.spec == P("data", None)


@pytest.mark.parametrize("rebalance", [(), (1, 2)])
def test_run_sharded_under_a_mesh_of_the_context(mesh, rebalance):
    step = dx.stacked_step(block, head, WEIGHTS)
    wanted = dx.run_until(step, ROWS, 4, AT)
    with jax.set_mesh(mesh):
        found = dx.run_sharded(step, ROWS, 4, AT, mesh, rebalance=rebalance)
        doubled = found.output * 2  # the result may be used in that context
    same(jax.tree.map(np.asarray, found), wanted)
    np.testing.assert_allclose(doubled, 2 * wanted.output, rtol=1e-5, atol=1e-6)


def test_tune_on_an_explicit_mesh(mesh):
    x = jax.device_put(ROWS, NamedSharding(mesh, P("data")))
    tuned = dx.tune(dx.stacked_step(block, head, WEIGHTS), x, 4, sizes=(1, 8), repeats=1)
    assert sorted(tuned.costs[0]) == [1, 8]
