"""The schedule and updates by hand, and weight decay by path."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.core.settings import Training
from dynexit.training.optimizer import decayed, learning_rate, make_optimizer


@pytest.mark.parametrize("warmup", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_schedule(schedule, warmup):
    rate = learning_rate(Training(steps=20, warmup=warmup, learning_rate=0.3, schedule=schedule))
    for s in range(21):
        warm = int(20 * warmup)
        t = min(max((s - warm) / max(20 - warm, 1), 0), 1)
        fall = {"cosine": (1 + math.cos(math.pi * t)) / 2, "linear": 1 - t, "constant": 1.0}[
            schedule
        ]
        wanted = 0.3 * (s / warm if s < warm else fall)
        assert float(rate(jnp.int32(s))) == pytest.approx(wanted, abs=1e-6)


def by_hand(settings, p, g, decay, steps):
    """Updates of one number whose gradient is constant."""
    m = v = 0.0
    for s in range(1, steps + 1):
        if settings.optimizer == "adamw":
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            direction = (m / (1 - 0.9**s)) / (math.sqrt(v / (1 - 0.999**s)) + 1e-8)
        else:
            m = 0.9 * m + g
            direction = g + 0.9 * m
        p -= settings.learning_rate * (direction + (settings.weight_decay * p if decay else 0))
    return p


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_updates_decay_weights_alone(optimizer):
    settings = Training(
        optimizer=optimizer,
        schedule="constant",
        warmup=0.0,
        learning_rate=0.1,
        weight_decay=0.2,
        clip=0.0,
    )
    chain = make_optimizer(settings)
    params, gradients = (
        {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])},
        {"kernel": jnp.array([0.7]), "bias": jnp.array([0.7])},
    )
    state = chain.init(params)
    for _ in range(3):
        updates, state = chain.update(gradients, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    assert float(params["kernel"][0]) == pytest.approx(
        by_hand(settings, 2.0, 0.7, True, 3), abs=1e-5
    )
    assert float(params["bias"][0]) == pytest.approx(
        by_hand(settings, 2.0, 0.7, False, 3), abs=1e-5
    )


def test_clipping_bounds_the_global_norm_and_zero_does_not_clip():
    settings = Training(
        optimizer="sgd",
        schedule="constant",
        warmup=0.0,
        learning_rate=1.0,
        weight_decay=0.0,
        clip=0.5,
    )
    params, gradients = (
        {"a": jnp.zeros(2), "b": jnp.zeros(1)},
        {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])},
    )
    for clip, scale in ((0.5, 0.1), (0.0, 1.0), (9.0, 1.0)):
        chain = make_optimizer(dataclasses.replace(settings, clip=clip))
        updates, _ = chain.update(gradients, chain.init(params), params)
        # Nesterov's first step is 1 + 0.9
        np.testing.assert_allclose(updates["a"][0], -1.9 * 3.0 * scale, rtol=1e-6)


def test_decayed_parameters():
    yes = ["blocks/attention/kernel", "head/w", "blocks/mlp/w1", "stem/patch_embed/kernel"]
    no = [
        "blocks/attention/bias",
        "blocks/qkv_bias",
        "head/b",
        "blocks/norm1/w",
        "blocks/LayerNorm_0/scale",
        "blocks/gamma",
    ]
    no += ["tokens/embedding", "pos_embed", "position", "cls_token", "blocks/mlp/b1"]
    tree = {}
    for name in (*yes, *no):
        *folders, leaf = name.split("/")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[leaf] = jnp.zeros((2, 3))
    found = {
        "/".join(k.key for k in path): flag
        for path, flag in jax.tree_util.tree_flatten_with_path(decayed(tree))[0]
    }
    assert found == {**dict.fromkeys(yes, True), **dict.fromkeys(no, False)}
    assert decayed({"kernel": 0, "bias": 0}, not_decayed=["kern"]) == {
        "kernel": False,
        "bias": True,
    }
