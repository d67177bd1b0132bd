"""Frozen parameters: no gradient, no optimizer state, no decay, not a bit changed; on real digits."""

import dataclasses
import hashlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.training.checkpointing.checkpoints import named_leaves, restore
from dynexit.training.frozen import joined, split
from dynexit.training.loop import fit
from dynexit.training.monitoring.product_flops import product_flops
from dynexit.training.parallel.mesh import make_mesh
from dynexit.training.parallel.placement import put_batch
from dynexit.training.state import create_state, init_program, state_shapes
from dynexit.training.step import make_gradient, make_train_step

TRUNK = dx.models.VitEncoder("vit", (8, 8), 1, patch=4, width=32, depth=2, heads=2, hidden=64)
TRAINING = dx.Training(
    steps=4,
    batch_size=16,
    learning_rate=0.05,
    warmup=0.0,
    weight_decay=0.5,
    checkpoint_every=2,
    eval_every=0,
    remat=False,
)


@dataclasses.dataclass(frozen=True)
class Settings(dx.Settings):
    model: dx.models.VitEncoder = TRUNK
    method: dx.methods.FrozenTrunk = dx.methods.FrozenTrunk()
    data: dx.data.Digits = dx.data.Digits(shift=0)


@pytest.fixture(scope="module")
def experiment():
    return Settings().build()


def one_device():
    return make_mesh(devices=jax.devices()[:1])


def sha256(tree):
    found = hashlib.sha256()
    for name, leaf in sorted(named_leaves(tree).items()):
        found.update(name.encode() + np.asarray(leaf).tobytes())
    return found.hexdigest()


def trained(experiment, folder, **changes):
    settings = dataclasses.replace(TRAINING, **changes)
    return fit(experiment, settings, folder, 0, progress=False, mesh=one_device())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_trunk_keeps_its_bits_in_training_and_in_checkpoints(experiment, optimizer, tmp_path):
    settings = dataclasses.replace(TRAINING, optimizer=optimizer)
    first = create_state(experiment, settings, 0, one_device()).params
    before, head = sha256(first["trunk"]), sha256(first["head"])
    found = trained(experiment, tmp_path, optimizer=optimizer)
    assert sha256(found.params["trunk"]) == before and sha256(found.params["head"]) != head
    saved = restore(tmp_path, state_shapes(experiment, settings))
    assert saved is not None and sha256(saved.tree.params["trunk"]) == before
    moments = {name for name in named_leaves(saved.tree.opt_state) if "trunk" in name}
    assert moments == set() and any("head" in n for n in named_leaves(saved.tree.opt_state))


@pytest.mark.slow
def test_heads_train_as_if_the_features_were_data(experiment, tmp_path):
    """An oracle: plain gradient descent of the heads on stored features."""
    settings = dict(optimizer="sgd", weight_decay=0.0, clip=0.0, schedule="constant", steps=3)
    state = create_state(experiment, dataclasses.replace(TRAINING, **settings), 0, one_device())
    head, model = state.params["head"], experiment.model
    bare = jax.tree.map(lambda a: a, {"trunk": state.params["trunk"]})
    velocity = jax.tree.map(jnp.zeros_like, head)

    def loss(head, batch):
        params = {**bare, "head": head}
        x = experiment.prepare(batch["inputs"])
        logits = dx.run_all(model.steps(params), model.embed(params, x), model.depth)
        picked = jax.nn.log_softmax(logits)[:, jnp.arange(16), batch["labels"]]
        return -picked.mean()

    gradient = jax.jit(jax.grad(loss))
    for step in range(3):
        g = gradient(head, jax.tree.map(jnp.asarray, experiment.train.batch(0, step, 16)))
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, g)
        head = jax.tree.map(lambda p, v, g: p - 0.05 * (0.9 * v + g), head, velocity, g)
    found = trained(experiment, tmp_path, **settings).params["head"]
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, found, head)


@pytest.mark.parametrize("remat", [False, True])
def test_an_update_costs_one_forward_pass_of_the_trunk(experiment, remat):
    settings = dataclasses.replace(TRAINING, remat=remat)
    shapes = state_shapes(experiment, settings)
    image = jax.ShapeDtypeStruct((16, 8, 8, 1), jnp.float32)
    drawn = (
        jax.ShapeDtypeStruct((16,), jnp.int32),
        shapes.key,
        jax.ShapeDtypeStruct((), jnp.float32),
    )
    model = experiment.model
    run = lambda p, x: dx.run_all(model.steps(p), model.embed(p, x), model.depth)
    forward = product_flops(run, shapes.params, image)
    cost = lambda e: product_flops(make_gradient(e, settings), shapes.params, None, image, *drawn)
    frozen, whole = (
        cost(experiment),
        cost(experiment._replace(method=dx.methods.confidence_exits())),
    )
    heads = 2 * 2 * 16 * 32 * 10  # FLOPs of the products of the linear probes
    assert forward <= frozen <= forward + 2 * heads
    assert whole > 2.5 * frozen


def test_frozen_weights_are_arguments_of_the_programs(experiment, tmp_path):
    folder = dx.models.vision.to_hf(
        tmp_path / "trunk", TRUNK, jax.jit(experiment.model.init)(jax.random.key(3))
    )
    model = dx.models.PretrainedVit(str(folder)).build((8, 8, 1), 10)
    pretrained, mesh = experiment._replace(model=model), one_device()
    init = init_program(pretrained, TRAINING, mesh)
    longest = lambda lowered: max(
        map(len, re.findall(r'dense<"0x[0-9A-F]*"', lowered.as_text())), default=0
    )
    assert sum(a.size >= 1024 for a in init.constants(jax.random.key(0))) >= 6
    assert longest(init.lower(jax.random.key(0))) < 8 * 1024 + 100
    state = init(jax.random.key(0))
    written = dx.models.vision.from_hf(folder).params["trunk"]
    assert sha256(state.params["trunk"]) == sha256(written)
    step = make_train_step(pretrained, TRAINING, mesh)
    batch = put_batch(experiment.train.batch(0, 0, 16), mesh)
    assert step.constants(state, batch) == [] and longest(step.lower(state, batch)) < 2000
    after, _ = step(state, batch)
    assert sha256(after.params["trunk"]) == sha256(written)


def test_a_function_of_the_path_freezes_what_it_names(experiment, tmp_path):
    method = dx.methods.frozen_trunk(trunk=lambda path: path.endswith("bias"))
    first = create_state(experiment, TRAINING, 0, one_device()).params
    found = trained(experiment._replace(method=method), tmp_path).params
    before, after = named_leaves(first), named_leaves(found)
    same = {n for n in before if np.array_equal(before[n], after[n])}
    assert same == {n for n in before if n.endswith("bias")}


def test_split_and_joined_are_inverse():
    params = {"a": [1.0, 2.0], "trunk": {"w": 3.0}, "trunks": 4.0}
    assert joined(*split(params, ("trunk", "a/0"))) == params
    assert split(params, ("trunk", "a/0"))[0] == {
        "a": [None, 2.0],
        "trunk": {"w": None},
        "trunks": 4.0,
    }
    assert split(params, ()) == (params, {"a": [None] * 2, "trunk": {"w": None}, "trunks": None})


@pytest.mark.parametrize(
    "frozen, words",
    [
        (("tronk",), "is 'tronk', which no parameter's path begins with or matches; paths begin"),
        (("trunk", "gone"), "is 'gone'"),
        (lambda path: False, "is a function, which no parameter"),
        (lambda path: True, "names all parameters, so there is nothing to train"),
        (("trunk", "head"), "names all parameters"),
    ],
)
def test_what_freezes_nothing_or_everything_is_refused(experiment, frozen, words):
    method = experiment.method._replace(frozen=frozen)
    with pytest.raises(ValueError, match=f"`method.frozen` {words}"):
        state_shapes(experiment._replace(method=method), TRAINING)


def test_prefixes_are_a_tuple(experiment):
    method = experiment.method._replace(frozen="trunk")
    with pytest.raises(TypeError, match="a function of a path or a tuple of prefixes, got 'trunk'"):
        state_shapes(experiment._replace(method=method), TRAINING)
