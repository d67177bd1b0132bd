"""Programs in which devices would wait for one whose rows have exited are refused while tracing or
compiling; those of tensor parallelism inside a shard of rows run.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import dynexit as dx
from dynexit.engine.collectives import collectives, compile_sharded, exit_groups

B, L, N, D, HEADS = 8, 3, 4, 16, 4
RULE = dx.criteria.max_probability_above(0.9)
SWAP = [(0, 1), (1, 0)]


def mesh(data=2, model=2, kind=AxisType.Auto):
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto, kind))


def weights(key=0):
    keys = jax.random.split(jax.random.key(key), 4)
    return {
        "qkv": jax.random.normal(keys[0], (N, D, 3 * D)) / 4,
        "out": jax.random.normal(keys[1], (N, D, D)) / 4,
        "up": jax.random.normal(keys[2], (N, D, 32)) / 4,
        "down": jax.random.normal(keys[3], (N, 32, D)) / 4,
    }


ROWS = jax.random.normal(jax.random.key(9), (B, L, D))
COLUMNS = {  # of the fused kernel, so that queries, keys and values are not where they are used
    "qkv": P(None, None, "model"),
    "out": P(None, "model"),
    "up": P(None, None, "model"),
    "down": P(None, "model"),
}


def attention(p, h):
    heads = lambda a: a.reshape(*a.shape[:2], HEADS, D // HEADS)
    q, k, v = map(heads, jnp.split(h @ p["qkv"], 3, -1))
    a = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
    return h + jnp.einsum("bhqk,bkhd->bqhd", a, v).reshape(h.shape) @ p["out"]


def mlp(p, h):
    return h + jax.nn.relu(h @ p["up"]) @ p["down"]


def head(p, h):
    return h[:, 0, :3]


def over(name, f):
    """An MLP block plus a collective of the state over an axis."""
    return lambda p, h: mlp(p, h) + 0.1 * f(h, name)


def steps(block, p):
    return dx.stacked_step(block, head, p)


def until(block, rule=RULE, run=dx.run_until, **options):
    return lambda p, x: run(steps(block, p), x, N, rule, **options).exit_depth


def bounded(p, x):
    return dx.run_bounded(steps(mlp, p), x, N, RULE).output


def spread(f, axes=("data", "model"), of=None, check=True):
    """`f` inside `shard_map` with rows split over "data"; other axes are automatic."""
    return jax.shard_map(
        f,
        mesh=of or mesh(),
        in_specs=(P(), P("data")),
        out_specs=P("data"),
        axis_names=set(axes),
        check_vma=check,
    )


def placed(of=None, layout=COLUMNS):
    of = of or mesh()
    put = lambda a, spec: jax.device_put(a, NamedSharding(of, spec))
    return {k: put(a, layout[k]) for k, a in weights().items()}, put(ROWS, P("data"))


def constrained(p, h):
    turned = jax.lax.with_sharding_constraint(h, P(None, None, "model"))
    return mlp(p, jax.lax.with_sharding_constraint(turned, P(None, None, None)))


gathered = dx.Criterion(
    lambda i, output, memory: (jax.lax.pmax(output.max(-1), "data"), memory),
    lambda i, score, memory: (score > 1.0, memory),
)
mean = lambda h, name: jax.lax.pmean(h, name)
permuted = lambda h, name: jax.lax.ppermute(h, name, SWAP)
sharded = lambda block: dx.run_sharded(steps(block, placed()[0]), ROWS, N, RULE, mesh())
lowered = lambda f: jax.jit(f).lower(*placed())
explicit = mesh(kind=AxisType.Explicit)

# name -> a call that traces or compiles the program, and what the error names
REFUSED = {
    "a mean over the rows' axis": (
        lambda: lowered(spread(until(over("data", mean)))),
        "mesh axis 'data' \\(psum",
    ),
    "a criterion that reads other shards": (
        lambda: lowered(spread(until(mlp, gathered))),
        "mesh axis 'data' \\(pmax",
    ),
    "a permutation along the tensor axis": (
        lambda: lowered(spread(until(over("model", permuted)), check=False)),
        "communicates over the mesh axis 'model'",
    ),
    "a permutation along the tensor axis, checked": (
        lambda: lowered(spread(until(lambda p, h: h + mean(permuted(h, "model"), "model")))),
        "ppermute over the mesh axis 'model'",
    ),
    "an automatic axis": (
        lambda: lowered(spread(until(attention), ["data"])),
        "automatic axis 'model' of 2",
    ),
    "an automatic axis, masked": (
        lambda: lowered(spread(until(attention, executor="masked"), ["data"])),
        "automatic axis 'model' of 2",
    ),
    "an automatic axis, streamed": (
        lambda: lowered(spread(until(mlp, run=dx.run_stream), ["data"])),
        "automatic axis 'model' of 2",
    ),
    "an automatic axis, bounded": (
        lambda: lowered(spread(bounded, ["data"])),
        "automatic axis 'model' of 2",
    ),
    "an automatic axis that was Explicit": (
        lambda: jax.jit(spread(until(mlp), ["data"], explicit)).lower(*placed(explicit)),
        "automatic axis 'model' of 2",
    ),
    "a fused kernel, compiled": (
        lambda: compile_sharded(spread(until(attention), ["data"]), *placed()),
        "collective-permute .* joins the devices \\[0, 1, 2, 3\\]",
    ),
    "a constraint within the step, compiled": (
        lambda: compile_sharded(spread(until(constrained), ["data"]), *placed()),
        "joins the devices \\[0, 1, 2, 3\\]",
    ),
    "a fused kernel, sharded": (lambda: sharded(attention), "collective-permute .* joins"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_program_whose_devices_would_wait_is_refused_while_compiling(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_a_refused_program_is_refused_again_after_it_was_compiled_with_reading():
    f = jax.jit(spread(until(mlp), ["data"]))
    compile_sharded(f, *placed())
    with pytest.raises(ValueError, match="automatic axis 'model' of 2"):
        f.lower(*placed())


@pytest.mark.parametrize("executor", ["compacted", "masked", "per_row"])
def test_sums_over_an_automatic_tensor_axis_run(executor):
    f = spread(until(mlp, executor=executor), ["data"])
    want = until(mlp)(weights(), ROWS)
    program = compile_sharded(f, *placed())
    found = collectives(program.as_text())
    assert {c.kind for c in found if c.apart} == {"all-reduce"}
    assert len(set(want.tolist())) > 1
    np.testing.assert_array_equal(program(*placed()), want)


def test_sums_over_a_manual_tensor_axis_run():
    block = lambda p, h: h + jax.lax.psum(jax.nn.relu(h @ p["up"]) @ p["down"], "model")
    layout = {k: COLUMNS[k] for k in ("up", "down")}
    f = jax.shard_map(until(block), mesh=mesh(), in_specs=(layout, P("data")), out_specs=P("data"))
    p = {k: weights()[k] for k in layout}
    np.testing.assert_array_equal(jax.jit(f)(p, ROWS), until(mlp)(weights(), ROWS))


@pytest.mark.parametrize("of, axes", [(mesh(4, 1), ["data"]), (mesh(1, 4), ["data"])])
def test_axes_of_one_device_are_not_refused(of, axes):
    f = jax.jit(spread(until(mlp), axes, of))
    np.testing.assert_array_equal(f(*placed(of)), until(mlp)(weights(), ROWS))


@pytest.mark.parametrize("rebalance", [(), (1, 3)])
def test_run_sharded_keeps_weights_split(rebalance):
    p, x = placed()
    want = dx.run_until(steps(mlp, weights()), ROWS, N, RULE)
    for _ in range(2):
        got = dx.run_sharded(steps(mlp, p), x, N, RULE, mesh(), rebalance=rebalance)
        np.testing.assert_array_equal(got.exit_depth, want.exit_depth)
        np.testing.assert_allclose(got.output, want.output, rtol=1e-5, atol=1e-5)


HLO = """
%loop (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %c = (f32[2,8]{1,0}, u32[]) collective-permute-start(%a), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %r = f32[4]{0:T(8,128)} all-reduce(%a), channel_id=2, replica_groups=[2,2]<=[2,2]T(1,0), use_global_device_ids=true, to_apply=%add, metadata={op_name="a/psum"}
}

%test (p: s32[]) -> pred[] {
  %g = bf16[8]{0} all-gather(%a), channel_id=3, replica_groups={{0,1},{2,3}}, dimensions={0}, use_global_device_ids=true
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %w = (s32[], f32[4]) while(%t), condition=%test, body=%loop
  ROOT %e = f32[4]{0} all-reduce(%x), channel_id=4, replica_groups={}, use_global_device_ids=true, to_apply=%add
}
"""


def test_collectives_are_read_from_a_program():
    found = {c.name: c for c in collectives(HLO)}
    assert {name: c.groups for name, c in found.items()} == {
        "c": None,
        "r": ((0, 2), (1, 3)),
        "g": ((0, 1), (2, 3)),
        "e": None,
    }
    assert {name for name, c in found.items() if c.apart} == {"c", "r", "g"}
    assert found["r"].source == "a/psum"
    assert (found["r"].bytes, found["g"].bytes) == (16, 16)
    assert {c.times for c in found.values()} == {1}
    counted = HLO.replace("body=%loop", 'body=%loop, backend_config={"known_trip_count":{"n":"3"}}')
    assert not any(c.apart for c in collectives(counted))
    assert {c.name: c.times for c in collectives(counted)} == {"c": 3, "r": 3, "g": 3, "e": 1}


@pytest.mark.parametrize(
    "form, groups",
    [
        ("{{0,2},{1,3}}", ((0, 2), (1, 3))),
        ("[2,2]<=[4]", ((0, 1), (2, 3))),
        ("[4,2]<=[2,2,2]T(0,2,1)", ((0, 2), (1, 3), (4, 6), (5, 7))),
        ("mesh['a'=2,'b'=4] {'a'}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("mesh['a'=2,'b'=4] {'a','b'}", ((0, 1, 2, 3, 4, 5, 6, 7),)),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", ((0, 2), (1, 3), (4, 6), (5, 7))),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", ((0, 1), (2, 3))),
        ("mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}", ((0, 2), (1, 3))),
        ("{}", None),
        ("something else", None),
    ],
)
def test_groups_are_read_in_every_form(form, groups):
    line = f"  %r = f32[4] all-reduce(%a), channel_id=1, replica_groups={form}, use_global_device_ids=true"
    (found,) = collectives(f"ENTRY %main (x: f32[4]) -> f32[4] {{\n{line}\n}}\n")
    assert found.groups == groups


def test_devices_that_run_the_same_iterations():
    axes = ("a", 2), ("b", 2), ("c", 2)
    assert exit_groups(axes, frozenset("ac")).tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
