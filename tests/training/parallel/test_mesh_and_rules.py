"""Meshes from settings, rules over parameter paths, and where parameters, moments and rows go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

import dynexit as dx
from dynexit.core.settings import Mesh, validate
from dynexit.layers.norms import GroupNorm
from dynexit.training.optimizer import path_name
from dynexit.training.parallel.mesh import axis_sizes, check_batch_size, make_mesh
from dynexit.training.parallel.placement import carried, put_batch, shardings, whole
from dynexit.training.parallel.rules import GROUP, TENSOR_PARALLEL, spec_of
from dynexit.training.state import create_state


def mesh_of(data=1, fsdp=1, model=1):
    return AbstractMesh((data, fsdp, model), ("data", "fsdp", "model"))


@pytest.mark.parametrize(
    "settings, count, sizes",
    [
        (Mesh(), 8, (8, 1, 1)),
        (Mesh(fsdp=2, model=2), 8, (2, 2, 2)),
        (Mesh(data=1, fsdp=8), 8, (1, 8, 1)),
        (Mesh(), 1, (1, 1, 1)),
    ],
)
def test_data_takes_the_devices_that_remain(settings, count, sizes):
    assert axis_sizes(settings, count) == sizes


@pytest.mark.parametrize(
    "settings, numbers",
    [
        (Mesh(fsdp=3), r"`mesh` .* = 3 devices, .* the 4 devices"),
        (Mesh(data=2, fsdp=4), r"`mesh` has data 2 x fsdp 4 x model 1 = 8 devices, .* are 4"),
        (Mesh(data=2), r"= 2 devices, and there are 4"),
        (Mesh(fsdp=8), r"= 8 devices"),
    ],
)
def test_other_numbers_of_devices_are_refused(settings, numbers):
    with pytest.raises(ValueError, match=numbers):
        make_mesh(settings)


def test_sizes_below_one_are_refused_by_field():
    assert validate(dx.Settings(mesh=Mesh(data=0, model=-1))) == [
        "mesh.data must be at least 1, got 0",
        "mesh.model must be at least 1, got -1",
    ]


def test_a_mesh_has_auto_axes_and_rows_are_split_over_two_of_them():
    mesh = make_mesh(Mesh(fsdp=2, model=2))
    assert mesh.axis_names == ("data", "fsdp", "model") and not mesh.explicit_axes
    check_batch_size(6, mesh)
    with pytest.raises(ValueError, match=r"`batch_size` .* the 2 devices .* got 7; .* is 8"):
        check_batch_size(7, mesh)


@pytest.mark.parametrize(
    "name, shape, mesh, spec",
    [
        ("blocks/block/qkv/kernel", (6, 64, 3, 8, 8), mesh_of(model=4), (None, None, None, "model", None)),
        ("blocks/block/qkv/kernel", (6, 64, 3, 8, 8), mesh_of(fsdp=2, model=4), (None, "fsdp", None, "model", None)),
        ("block/qkv/kernel", (64, 3, 8, 8), mesh_of(model=4), (None, None, "model", None)),
        ("block/out/kernel", (8, 8, 64), mesh_of(fsdp=2, model=4), ("model", None, "fsdp")),
        ("blocks/block/up/bias", (6, 256), mesh_of(fsdp=2, model=4), (None, "model")),
        ("block/up/kernel", (256, 1024), mesh_of(fsdp=2, model=4), ("fsdp", "model")),
        ("blocks/block/norm1/scale", (6, 64), mesh_of(fsdp=2, model=4), (None, "fsdp")),
        ("blocks/head/logits/bias", (4, 10), mesh_of(fsdp=4), ("fsdp", None)),
        ("blocks/head/logits/bias", (6, 10), mesh_of(fsdp=4), (None, None)),
        ("blocks/query/weight", (6, 64, 32), mesh_of(fsdp=2, model=4), (None, "model", "fsdp")),
        ("blocks/out/weight", (6, 64, 32), mesh_of(fsdp=2, model=4), (None, "fsdp", "model")),
        ("blocks/up/bias", (6, 32), mesh_of(model=4), (None, "model")),
        ("blocks/query_norm/weight", (6, 32), mesh_of(model=4), (None, None)),
        ("embed/tokens", (100, 32), mesh_of(fsdp=2, model=4), (None, "fsdp")),
        ("head/logits/weight", (100, 32), mesh_of(model=4), (None, None)),
        ("step", (), mesh_of(fsdp=4), ()),
    ],
)  # fmt: skip
def test_ready_rules(name, shape, mesh, spec):
    names = [name, name.replace("out", "qkv")]
    assert tuple(spec_of(name, shape, mesh, TENSOR_PARALLEL, names)) == spec


def test_own_rules_come_first_and_none_keeps_a_parameter_whole():
    mesh = mesh_of(fsdp=2, model=2)
    own = [("^head/", None), ("kernel$", P("fsdp", ("data", "model")))]
    assert tuple(spec_of("head/kernel", (8, 8), mesh, own)) == (None, None)
    assert tuple(spec_of("block/kernel", (3, 8, 8), mesh, own)) == (None, "fsdp", "model")
    assert tuple(spec_of("block/bias", (3, 8), mesh, own)) == (None, "fsdp")


@pytest.mark.parametrize(
    "shape, rule, words",
    [
        ((8,), ("bias", P(None, "model")), r"gives .* to blocks/bias, whose shape is only \[8\]"),
        ((3, 8), ("bias", P("modle")), "names the axis 'modle', and the mesh has data, fsdp, model"),
        ((3, 6), ("bias", P("model")), r"the 4 devices of the axis 'model' .* axis 1 of blocks/bias, .* \[3, 6\]"),
    ],
)  # fmt: skip
def test_rules_that_do_not_fit_name_the_parameter(shape, rule, words):
    with pytest.raises(ValueError, match=words):
        spec_of("blocks/bias", shape, mesh_of(model=4), [rule])


@pytest.mark.parametrize("axis", ["fsdp", "model"])
def test_an_axis_that_splits_nothing_is_refused(axis):
    params = {"w": jnp.zeros((3, 5)), "b": jnp.zeros(3)}
    with pytest.raises(ValueError, match=rf"`mesh`: the axis '{axis}' of 4 .* w, .* \[3, 5\]"):
        shardings(params, make_mesh(Mesh(**{axis: 4})), ())


def test_moments_are_where_their_parameters_are(toy):
    mesh, rules = make_mesh(Mesh(fsdp=2, model=2)), [("blocks/kernel$", P("model", "fsdp"))]
    state = create_state(toy.build(), toy.SETTINGS, 0, mesh, rules)
    adam = state.opt_state[1]
    for moment in (adam.mu, adam.nu):
        places = [[a.sharding for a in jax.tree.leaves(t)] for t in (moment, state.params)]
        assert places[0] == places[1]
    assert state.params["blocks"]["kernel"].addressable_shards[0].data.shape == (3, 4, 4)
    assert state.params["blocks"]["bias"].addressable_shards[0].data.shape == (3, 4)
    assert adam.count.is_fully_replicated and state.key.is_fully_replicated


def test_a_device_draws_its_own_part_of_the_values_of_one_device(toy):
    one = create_state(toy.build(), toy.SETTINGS, 0, make_mesh(devices=jax.devices()[:1]))
    for settings in (Mesh(fsdp=4), Mesh(fsdp=2)):
        split = create_state(toy.build(), toy.SETTINGS, 0, make_mesh(settings)).params
        assert not split["blocks"]["kernel"].is_fully_replicated
        jax.tree.map(np.testing.assert_array_equal, whole(split), one.params)


def test_rows_are_split_and_the_state_of_data_parallelism_is_replicated(toy):
    mesh = make_mesh()
    batch = put_batch(toy.batch(0, 0, 8), mesh)
    assert [s.data.shape for s in batch["inputs"].addressable_shards] == [(2, 4)] * 4
    np.testing.assert_array_equal(batch["labels"], toy.batch(0, 0, 8)["labels"])
    state = create_state(toy.build(), toy.SETTINGS, 0, mesh)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state))
    batch = put_batch(toy.batch(0, 0, 8), make_mesh(Mesh(fsdp=2, model=2)))
    assert {s.data.shape for s in batch["inputs"].addressable_shards} == {(4, 4)}
    with pytest.raises(ValueError, match="`batch_size` must be divisible by the 4 devices"):
        put_batch(toy.batch(0, 0, 6), mesh)


def test_slots_are_split_by_rows():
    mesh, slots = make_mesh(), {"labels": jnp.zeros((8, 2)), "count": jnp.zeros(3)}
    found = carried(slots, 8, mesh)
    assert found["labels"].spec == P(("data", "fsdp")) and found["count"].is_fully_replicated
    assert carried(slots, 7, mesh)["labels"].is_fully_replicated


MODELS = {
    "Vit": (dx.models.Vit(patch=4, width=8, depth=2, heads=2), (8, 4, 2), "out/kernel"),
    "Mlp": (dx.models.Mlp(width=8, depth=3), (3, 4), "down/kernel"),
    "ParaGru": (dx.models.ParaGru(width=8, depth=2), (6, 2), "gru/recurrent"),
    "CausalLM": (dx.models.CausalLM(width=8, depth=2, heads=2, qkv_bias=True), dx.Tokens(7, 4), "out/weight"),
    "RecurrentDepth": (dx.models.RecurrentDepth(width=8, heads=2, steps=3), dx.Tokens(7, 4), "out/kernel"),
    "UniversalTransformer": (dx.models.UniversalTransformer(width=8, heads=2, steps=3), dx.Tokens(7, 4), "out/kernel"),
    "Recursive": (dx.models.Recursive(width=8, segments=2, inner=1, cycles=2, layers=1), dx.Tokens(7, 4), "down/kernel"),
    "BlockRecurrent": (dx.models.BlockRecurrent(counts=(2, 1), patch=4, width=8, heads=2), (8, 4, 2), "out/kernel"),
    "Resnet": (dx.models.Resnet(channels=(16, 32), blocks=(2, 1)), (8, 4, 2), "block/conv2/kernel"),
    "Gru": (dx.models.Gru(width=8, steps=3), (6,), "cell/hn/kernel"),
    "Rnn": (dx.models.Rnn(width=8, depth=2, cell="elman"), dx.Tokens(7, 4), "cell/h/kernel"),
    "DeepThinking": (dx.models.DeepThinking(width=8, steps=3), (6, 2), "block/out1/kernel"),
    "Equilibrium": (dx.models.Equilibrium(width=8, steps=3), (4, 4, 1), "block/out/kernel"),
    "NeuralOde": (dx.models.NeuralOde(width=8, hidden=8, steps=3), (6,), "block/out/kernel"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_ready_rules_are_for_every_family(name):
    """Every matrix is split by FSDP, and the axis "model" splits a parameter of every family."""
    settings, inputs, split = MODELS[name]
    model = settings.build(inputs, 7)
    params = jax.eval_shape(model.init, jax.random.key(0))
    found = shardings(params, make_mesh(Mesh(fsdp=4)), TENSOR_PARALLEL)
    for leaf, where in zip(jax.tree.leaves(params), jax.tree.leaves(found), strict=True):
        assert leaf.size < 32 or not where.is_fully_replicated
    found = shardings(params, make_mesh(Mesh(fsdp=2, model=2)), TENSOR_PARALLEL)
    split_by_model = [
        path_name(path)
        for path, where in jax.tree_util.tree_leaves_with_path(found)
        if "model" in where.spec
    ]
    assert any(path.endswith(split) for path in split_by_model)


@pytest.mark.parametrize(
    "settings, inputs, words",
    [
        (
            dx.models.Resnet(channels=(16,), blocks=(1,)),
            (8, 4, 2),
            r"4 devices .* axis 4 in groups of 8 of blocks/0/block/conv1/kernel, .* \[1, 3, 3, 16, 16\]",
        ),
        (dx.models.Gru(width=6), (6,), r"4 devices .* block/cell/hn/bias, whose shape is \[6\]"),
        (
            dx.models.NeuralOde(width=8, hidden=10),
            (6,),
            r"4 devices .* axis 0 of block/in/bias, whose shape is \[10\]",
        ),
        (
            dx.models.Rnn(width=8, cell="lstm"),
            dx.Tokens(7, 4),
            r"4 devices cannot split blocks/block/cell/hf/kernel, .* \[1, 8, 8\]: an LSTM computes",
        ),
    ],
)
def test_families_that_do_not_fit_the_axis_are_refused(settings, inputs, words):
    params = jax.eval_shape(settings.build(inputs, 7).init, jax.random.key(0))
    shardings(params, mesh_of(fsdp=2), TENSOR_PARALLEL)
    with pytest.raises(ValueError, match=words):
        shardings(params, mesh_of(model=4), TENSOR_PARALLEL)


def test_the_channels_of_a_group_stay_together():
    assert GROUP == GroupNorm.size
