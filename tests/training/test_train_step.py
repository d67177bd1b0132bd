"""One update against a plain gradient step; errors; batches that are not finite."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynexit.training.optimizer import make_optimizer
from dynexit.training.parallel.mesh import make_mesh
from dynexit.training.parallel.placement import put_batch
from dynexit.training.state import create_state
from dynexit.training.step import make_loss, make_train_step


def setting(toy, experiment=None, devices=None, **changes):
    experiment, mesh = experiment or toy.build(), make_mesh(devices=devices)
    settings = dataclasses.replace(toy.SETTINGS, **changes)
    return (
        make_train_step(experiment, settings, mesh),
        create_state(experiment, settings, 0, mesh),
        mesh,
        settings,
    )


def plain_loss(params, inputs, labels):
    """Block by block and row by row."""
    h, losses = inputs @ params["embed"]["kernel"], []
    for k in range(params["blocks"]["kernel"].shape[0]):
        h = h + jnp.tanh(h @ params["blocks"]["kernel"][k] + params["blocks"]["bias"][k][None])
        logits = h @ params["head"]["kernel"]
        losses += [
            jax.nn.logsumexp(logits[b]) - logits[b, int(labels[b])] for b in range(len(labels))
        ]
    return sum(losses) / len(losses)


def test_it_equals_a_plain_gradient_step_and_metrics_are_those_before_it(toy):
    experiment = toy.build()._replace(augment=None, prepare=lambda x: 2.0 * x)
    step, state, mesh, settings = setting(toy, experiment, warmup=0.0, clip=0.1)
    batch, params = toy.batch(0, 0, 8), jax.device_get(state.params)
    optimizer = make_optimizer(settings)

    @jax.jit
    def plain_step(params):
        loss, gradients = jax.value_and_grad(plain_loss)(
            params, 2.0 * batch["inputs"], batch["labels"]
        )
        return loss, gradients, optimizer.update(gradients, optimizer.init(params), params)[0]

    loss, gradients, updates = plain_step(params)
    state, metrics = step(state, put_batch(batch, mesh))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradients), rtol=1e-5)
    assert (
        float(metrics["learning_rate"]) == pytest.approx(0.05)
        and bool(metrics["finite"])
        and int(state.step) == 1
    )
    wanted = optax.apply_updates(params, updates)
    chex.assert_trees_all_close(jax.device_get(state.params), wanted, rtol=1e-7, atol=1e-5)


def test_one_device_and_four_agree(toy):
    ends = []
    for devices in (jax.devices()[:1], jax.devices()[:4]):
        step, state, mesh, _ = setting(toy, devices=devices)
        for s in range(3):
            state, _ = step(state, put_batch(toy.batch(0, s, 8), mesh))
        ends.append(jax.device_get(state.params))
    chex.assert_trees_all_close(*ends, rtol=1e-7, atol=1e-5)


def test_augmentation_differs_from_step_to_step(toy):
    spread = lambda key, x: jnp.broadcast_to(jax.random.normal(key, (1, 1)), x.shape)
    step, state, mesh, _ = setting(
        toy, toy.build()._replace(augment=spread), learning_rate=1e-9, warmup=0.0
    )
    batch, losses = put_batch(toy.batch(0, 0, 8), mesh), []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert len(set(losses)) == 3


def test_a_batch_that_is_not_finite_changes_no_bit_and_neither_does_the_next(toy):
    step, state, mesh, _ = setting(toy)
    state, _ = step(state, put_batch(toy.batch(0, 0, 8), mesh))
    numbers = lambda s: [
        np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((s.step, s.params, s.opt_state))
    ]
    before = numbers(state)
    bad = toy.batch(0, 1, 8)
    bad["inputs"][0, 0] = np.inf
    state, metrics = step(state, {**put_batch(bad, mesh), "step": jnp.int32(1)})
    assert not metrics["finite"] and numbers(state) == before
    state, metrics = step(state, {**put_batch(toy.batch(0, 2, 8), mesh), "step": jnp.int32(2)})
    assert metrics["finite"] and numbers(state) == before
    state, _ = step(state, {**put_batch(toy.batch(0, 1, 8), mesh), "step": jnp.int32(1)})
    assert int(state.step) == 2 and numbers(state) != before


def test_it_is_traced_once(toy):
    traced = []

    def objective(outputs, labels, progress):
        traced.append(outputs.shape)
        return toy.objective(outputs, labels, progress)

    experiment = toy.build()
    step, state, mesh, _ = setting(
        toy, experiment._replace(method=experiment.method._replace(objective=objective))
    )
    for s in range(4):
        state, _ = step(state, put_batch(toy.batch(0, s, 8), mesh))
    assert traced == [(3, 8, 3)]


def test_the_state_is_donated(toy):
    step, state, mesh, _ = setting(toy)
    step(state, put_batch(toy.batch(0, 0, 8), mesh))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_bfloat16_is_the_compute_type_alone(toy):
    seen = []

    def objective(outputs, labels, progress):
        seen.append(outputs.dtype)
        return toy.objective(outputs, labels, progress)

    experiment = toy.build()
    embed = lambda p, x: (seen.append(x.dtype), experiment.model.embed(p, x))[1]
    watched = experiment._replace(
        model=experiment.model._replace(embed=embed),
        method=experiment.method._replace(objective=objective),
        augment=None,
    )
    low, high = (dataclasses.replace(toy.SETTINGS, precision=p) for p in ("bfloat16", "float32"))
    params, batch = toy.init(jax.random.key(0)), toy.batch(0, 0, 8)
    arguments = (
        params,
        None,
        jnp.asarray(batch["inputs"]),
        jnp.asarray(batch["labels"]),
        jax.random.key(1),
        jnp.float32(0),
    )
    (a, _), gradients = jax.value_and_grad(make_loss(watched, low), has_aux=True)(*arguments)
    assert seen == [jnp.bfloat16, jnp.float32]
    assert {g.dtype for g in jax.tree.leaves(gradients)} == {
        jnp.dtype("float32")
    } and a.dtype == jnp.float32
    b, _ = make_loss(experiment, high)(*arguments)
    assert a != b and abs(a - b) < 0.05
    step, state, mesh, _ = setting(toy, precision="bfloat16")
    state, _ = step(state, put_batch(batch, mesh))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "objective, text",
    [
        (
            lambda o, y, p: (jnp.mean(o), {}),
            r"`method` must return one loss per example, shape \[8\], got \[\]",
        ),
        (lambda o, y, p: (o[0, :, 0], {"loss": p}), r"`method` returns metrics named \['loss'\]"),
    ],
)
def test_an_invalid_objective_is_an_error(toy, objective, text):
    experiment = toy.build()
    step, state, mesh, _ = setting(
        toy, experiment._replace(method=experiment.method._replace(objective=objective))
    )
    with pytest.raises(ValueError, match=text):
        step(state, put_batch(toy.batch(0, 0, 8), mesh))
