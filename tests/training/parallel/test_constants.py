"""Arrays from outside of the training programs, such as a teacher, are their arguments."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.core.settings import Mesh, Training
from dynexit.training.parallel.constants import Compiled
from dynexit.training.parallel.mesh import make_mesh
from dynexit.training.parallel.placement import put_batch
from dynexit.training.state import create_state
from dynexit.training.step import make_train_step

LONGEST = 2000  # characters of a constant in a program's text


def longest_constant(lowered):
    return max(map(len, re.findall(r'dense<"0x[0-9A-F]*"', lowered.as_text())), default=0)


def test_constants_are_arguments_and_the_last_argument_may_change_its_shape():
    big, small = np.arange(2048.0, dtype=np.float32).reshape(64, 32), jnp.ones(3)
    product = Compiled(lambda scale, x: scale * (x["x"] @ big) + small.sum(), make_mesh())
    for rows in (2, 5):
        args = jnp.float32(2), {"x": jnp.ones((rows, 64))}
        wanted = 2 * np.ones((rows, 64)) @ big + 3
        np.testing.assert_allclose(product(*args), wanted, rtol=1e-6)
        assert [a.shape for a in product.constants(*args)] == [(64, 32)]
        assert longest_constant(product.lower(*args)) < LONGEST


def test_a_donated_argument_is_donated_and_results_are_placed():
    mesh, big = make_mesh(), jnp.ones((64, 32))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    add = Compiled(lambda a, b: a + big.sum() + b, mesh, donate=[0], out_shardings=split)
    given = jax.device_put(jnp.ones(8), split)
    result = add(given, jnp.float32(1))
    assert given.is_deleted() and result.sharding == split and result[0] == 2050


def test_what_a_loss_closes_over_is_an_argument_of_the_train_step(toy):
    teacher = np.random.default_rng(0).normal(size=(4, 512)).astype(np.float32)

    def loss(model, params, inputs, labels, key, progress):
        wanted = (inputs @ teacher).mean(-1)
        return (model.embed(params, inputs).mean(-1) - wanted) ** 2, {}

    experiment = toy.build()
    experiment = experiment._replace(method=experiment.method._replace(loss=loss), augment=None)
    settings = dataclasses.replace(toy.SETTINGS, warmup=0.0)
    losses = {}
    for name, mesh in (("one", make_mesh(devices=jax.devices()[:1])), ("four", make_mesh())):
        state, losses[name] = create_state(experiment, settings, 0, mesh), []
        step, batch = (
            make_train_step(experiment, settings, mesh),
            put_batch(toy.batch(0, 0, 8), mesh),
        )
        assert [a.shape for a in step.constants(state, batch)] == [(4, 512)]
        assert longest_constant(step.lower(state, batch)) < LONGEST
        for _ in range(4):
            state, metrics = step(state, batch)
            losses[name].append(float(metrics["loss"]))
    np.testing.assert_allclose(losses["one"], losses["four"], rtol=1e-5)
    assert losses["one"][-1] < losses["one"][0]


@pytest.mark.slow
def test_the_teacher_is_an_argument_of_the_train_step_and_of_initialisation():
    images = np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype(np.float32)
    batch = {"inputs": images, "labels": np.arange(8, dtype=np.int32) % 4}
    split = [dx.Source(s, lambda *_: batch, lambda: batch, 8) for s in ("train", "calibration")]
    vit = dx.models.Vit(patch=4, width=32, depth=3, heads=4).build((8, 8, 1), 4)
    taught = jax.jit(vit.init)(jax.random.key(1))
    student = dx.models.BlockRecurrent((2, 1), patch=4, width=32, heads=4)
    experiment = dx.Experiment(
        student.build((8, 8, 1), 4, teacher=taught),
        dx.methods.Raptor(labels=0.1).build(vit, taught, (2, 1)),
        *split,
        split[1]._replace(split="test"),
    )
    settings, mesh = Training(steps=4, batch_size=8), make_mesh(Mesh(fsdp=2, model=2))
    state = create_state(experiment, settings, 0, mesh)
    np.testing.assert_array_equal(
        np.asarray(state.params["heads"]["logits"]["kernel"]),
        np.asarray(taught["blocks"]["head"]["logits"]["kernel"]),
    )
    step, placed = make_train_step(experiment, settings, mesh), put_batch(batch, mesh)
    large = [a for a in jax.tree.leaves(taught["blocks"]["block"]) if a.size >= 1024]
    found = [a.shape for a in step.constants(state, placed)]
    assert sorted(found) == sorted(a.shape for a in large)
    assert longest_constant(step.lower(state, placed)) < 8 * 1024 + 100
