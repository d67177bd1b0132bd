"""Rows spread over devices: the same results, each device on its own, survivors dealt out evenly,
and no one waited for in vain.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import dynexit as dx

DEVICES, B, N, D = 4, 24, 6, 8
EXECUTORS = ["compacted", "masked", "per_row"]


def mesh(*shape, names=("data",), kind=AxisType.Auto):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape))


@pytest.fixture(scope="module")
def network():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "up": jax.random.normal(keys[0], (N, D, 16)) / 3,
        "down": jax.random.normal(keys[1], (N, 16, D)) / 4,
    }
    return params, jax.random.normal(keys[2], (B, D))


def block(p, h):
    return h + jax.nn.relu(h @ p["up"]) @ p["down"]


def head(p, h):
    return h[:, :3]


def assert_equal(got, want):
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.compiled
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_run_until_inside_shard_map_needs_no_communication(network, executor, check_vma):
    params, x = network
    rule = lambda t: dx.criteria.any_of(
        dx.criteria.max_probability_above(t), dx.criteria.patience(4)
    )

    def run(params, x, t):
        halted = dx.run_until(dx.stacked_step(block, head, params), x, N, rule(t), executor)
        return halted._replace(rows_executed=halted.rows_executed[None])

    spread = jax.jit(
        jax.shard_map(
            run,
            mesh=mesh(DEVICES),
            in_specs=(P(), P("data"), P()),
            out_specs=P("data"),
            check_vma=check_vma,
        )
    )
    want = dx.run_until(dx.stacked_step(block, head, params), x, N, rule(0.6), executor)
    got = spread(params, x, 0.6)
    assert len(set(want.exit_depth.tolist())) > 2
    assert_equal(got._replace(rows_executed=()), want._replace(rows_executed=()))
    assert got.rows_executed.shape == (DEVICES,) and len(set(got.rows_executed.tolist())) > 1
    text = spread.lower(params, x, 0.6).compile().as_text()
    assert not any(
        f"{word}(" in text
        for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute")
    )


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_step_may_communicate_where_the_decision_is_the_same(network, executor):
    """Tensor parallelism: half of the hidden units on each device of `model`, whose rows leave
    together.
    """
    params, x = network
    parallel = lambda p, h: h + jax.lax.psum(jax.nn.relu(h @ p["up"]) @ p["down"], "model")
    leave = dx.criteria.max_probability_above(0.6)
    run = lambda p, x: dx.run_until(
        dx.stacked_step(parallel, head, p), x, N, leave, executor
    )._replace(rows_executed=())
    layout = {"up": P(None, None, "model"), "down": P(None, "model", None)}
    spread = jax.shard_map(
        run,
        mesh=mesh(2, 2, names=("data", "model")),
        in_specs=(layout, P("data")),
        out_specs=P("data"),
    )
    want = dx.run_until(dx.stacked_step(block, head, params), x, N, leave)
    assert_equal(jax.jit(spread)(params, x), want._replace(rows_executed=()))


@pytest.mark.parametrize("executor", [*EXECUTORS, "bounded", "stream"])
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("stages", [False, True])
def test_a_step_that_would_make_devices_wait_is_refused_while_tracing(
    network, executor, check_vma, stages
):
    params, x = network
    mean = lambda p, h: block(p, h) + jax.lax.pmean(h.mean(), "data")
    step = dx.stacked_step(mean, head, params)
    step, depth = ((step, step), (2, 1)) if stages and executor != "stream" else (step, N)
    leave = dx.criteria.max_probability_above(0.6)
    if executor == "bounded":
        run = lambda x: dx.run_bounded(step, x, depth, leave).output
    elif executor == "stream":
        run = lambda x: dx.run_stream(step, x, depth, leave).output
    else:
        run = lambda x: dx.run_until(step, x, depth, leave, executor).output
    spread = jax.shard_map(
        run, mesh=mesh(DEVICES), in_specs=P("data"), out_specs=P("data"), check_vma=check_vma
    )
    hint = "exits of rows differ" if check_vma else "check_vma=False hides"
    with pytest.raises(
        ValueError,
        match=rf"communicates over the mesh axis 'data' \(psum.*{hint}.*waited for without end",
    ):
        jax.jit(spread).lower(x)


def test_each_collective_is_found(network):
    params, x = network
    swap = [(k, (k + 1) % DEVICES) for k in range(DEVICES)]
    for collective in (
        lambda a: jax.lax.all_gather(a, "data").sum(0),
        lambda a: jax.lax.ppermute(a, "data", swap),
        lambda a: jax.lax.pmax(a, "data"),
        lambda a: jax.lax.all_to_all(a, "data", 1, 1, tiled=True),
        lambda a: jnp.tile(
            jax.lax.psum_scatter(a, "data", scatter_dimension=1, tiled=True), (1, DEVICES)
        ),
        lambda a: jax.lax.cond(
            a.sum() > 0,
            lambda a: jax.lax.psum(a, "data") * 1.0,
            lambda a: jax.lax.psum(a, "data"),
            a,
        ),
    ):
        step = dx.stacked_step(lambda p, h, c=collective: block(p, h) + c(h), head, params)
        run = lambda x, step=step: (
            dx.run_until(step, x, N, dx.criteria.max_probability_above(0.6)).output
        )
        with pytest.raises(ValueError, match="communicates over the mesh axis 'data'"):
            jax.jit(
                jax.shard_map(run, mesh=mesh(DEVICES), in_specs=P("data"), out_specs=P("data"))
            ).lower(x)


@pytest.mark.parametrize("kind, tile", [(AxisType.Auto, None), (AxisType.Explicit, 2)])
@pytest.mark.parametrize("rebalance", [(), (1,), (1, 2, 3, 4, 5)])
def test_run_sharded_equals_run_until(network, rebalance, kind, tile):
    params, x = network
    step = dx.stacked_step(block, head, params)
    for depths in (
        np.sort(np.random.default_rng(0).integers(1, N + 1, B))[
            ::-1
        ],  # all deep rows on the first device
        np.where(np.arange(B) < B // DEVICES, 1, N),  # a device without survivors
        np.full(B, N),
        np.full(B, 1),
    ):
        leave = dx.criteria.at_depth(jnp.asarray(depths.copy(), jnp.int32))
        want = dx.run_until(step, x, N, leave)
        got = dx.run_sharded(
            step, x, N, leave, mesh(DEVICES, kind=kind), rebalance=rebalance, tile=tile
        )
        assert_equal(got._replace(rows_executed=()), want._replace(rows_executed=()))
        assert got.output.sharding.is_equivalent_to(jax.NamedSharding(mesh(DEVICES), P("data")), 2)
    without = dx.run_sharded(
        step,
        x,
        N,
        leave,
        mesh(DEVICES, kind=kind),
        rebalance=rebalance,
        tile=tile,
        keep_state=False,
    )
    assert without.state is None
    assert_equal(without.output, want.output)


def test_survivors_are_dealt_out_evenly(network):
    """Half of the rows are deep, and all of them stand on the first two devices."""
    params, x = network
    step, leave = (
        dx.stacked_step(block, head, params),
        dx.criteria.at_depth(jnp.where(jnp.arange(B) < B // 2, N, 1)),
    )
    run = lambda rebalance: dx.run_sharded(
        step, x, N, leave, mesh(DEVICES), rebalance=rebalance, tile=1
    ).rows_executed.tolist()
    assert run(()) == [36, 36, 6, 6]
    assert run((1,)) == [6 + 5 * 3] * DEVICES
    assert run((3,)) == [18 + 9, 18 + 9, 6 + 9, 6 + 9]


def test_several_blocks_a_step_and_criteria_with_memory(network):
    params, x = network
    step = dx.stacked_step(block, head, params, blocks=2)
    leave = dx.criteria.any_of(dx.criteria.patience(2), dx.criteria.max_probability_above(0.7))
    want = dx.run_until(step, x, N, leave)
    got = dx.run_sharded(step, x, N, leave, mesh(DEVICES), rebalance=(2, 4))
    assert len(set(want.exit_depth.tolist())) > 1
    assert_equal(got._replace(rows_executed=()), want._replace(rows_executed=()))


def test_bad_arguments_are_named(network):
    params, x = network
    step, leave, four = (
        dx.stacked_step(block, head, params),
        dx.criteria.max_probability_above(0.6),
        mesh(DEVICES),
    )
    with pytest.raises(
        ValueError, match="`state` has 22 rows, which the 4 devices of axis 'data' do not divide"
    ):
        dx.run_sharded(step, x[:22], N, leave, four)
    with pytest.raises(
        ValueError, match=r"`axis` must be one of the mesh's \('data',\), got 'rows'"
    ):
        dx.run_sharded(step, x, N, leave, four, axis="rows")
    with pytest.raises(TypeError, match=r"`mesh` must be a jax.sharding.Mesh, got list"):
        dx.run_sharded(step, x, N, leave, jax.devices())
    with pytest.raises(TypeError, match="got a sequence of 2: for stages call"):
        dx.run_sharded((step, step), x, (2, 2), leave, four)
    for wrong in ((6,), (0,), (3, 2), (2, 2), (1.5,)):
        with pytest.raises(ValueError, match=r"`rebalance` must be increasing depths within 1..5"):
            dx.run_sharded(step, x, N, leave, four, rebalance=wrong)
    with pytest.raises(ValueError, match="multiples of the 2 blocks of a step, got"):
        dx.run_sharded(
            dx.stacked_step(block, head, params, blocks=2), x, N, leave, four, rebalance=(3,)
        )
