"""A small experiment with exits of mixed depths, in plain JAX: alike blocks, or two stages of
different width.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.core.types import Candidates, Experiment, Method, Model, Source

WIDTH, NARROW, CLASSES, DEPTH = 6, 3, 4, 5


def block(p, h):
    return h + jnp.tanh(h @ p["w"])


def head(p, h):
    return h @ p["out"]


def down(p, h):
    return jnp.tanh(h @ p["w"])


def _weights(key, *shape):
    return 0.9 * jax.random.normal(key, shape)


def alike_model():
    def init(key):
        keys = jax.random.split(key, 3)
        blocks = {
            "w": _weights(keys[0], DEPTH, WIDTH, WIDTH),
            "out": _weights(keys[1], DEPTH, WIDTH, CLASSES),
        }
        return {"embed": _weights(keys[2], 2, WIDTH), "blocks": blocks}

    steps = lambda params: dx.stacked_step(block, head, params["blocks"])
    return Model(
        init,
        lambda params, x: x @ params["embed"],
        steps,
        DEPTH,
        tuple(f"block{i:02d}" for i in range(DEPTH)),
    )


def staged_model():
    def init(key):
        k = jax.random.split(key, 7)
        first = {"w": _weights(k[0], 2, WIDTH, WIDTH), "out": _weights(k[1], 2, WIDTH, CLASSES)}
        change = {"w": _weights(k[2], 1, WIDTH, NARROW), "out": _weights(k[3], 1, NARROW, CLASSES)}
        last = {"w": _weights(k[4], 2, NARROW, NARROW), "out": _weights(k[5], 2, NARROW, CLASSES)}
        return {"embed": _weights(k[6], 2, WIDTH), "blocks": [first, change, last]}

    def steps(params):
        kinds = (block, down, block)
        return tuple(
            dx.stacked_step(f, head, p) for f, p in zip(kinds, params["blocks"], strict=True)
        )

    return Model(
        init,
        lambda params, x: x @ params["embed"],
        steps,
        (2, 1, 2),
        tuple(f"block{i:02d}" for i in range(DEPTH)),
    )


def method():
    points = np.linspace(0.3, 1.0, 6, dtype=np.float32)[:, None] * np.ones(
        (1, DEPTH - 1), np.float32
    )
    candidates = Candidates(
        lambda exits, fitted: {"threshold": np.ones(exits - 1, np.float32)},
        lambda records, fitted, costs: {"threshold": points},
    )
    return Method(
        objective=lambda outputs, labels, progress: (jnp.zeros(labels.shape), {}),
        criterion=lambda operating_point: dx.criteria.max_probability_above(
            operating_point["threshold"]
        ),
        candidates=candidates,
        predict=lambda output: jnp.argmax(output, axis=-1).astype(jnp.int32),
    )


def source(split, size, seed):
    random = np.random.default_rng(seed)
    whole = {
        "inputs": random.integers(-8, 8, (size, 2)).astype(np.int8),
        "labels": random.integers(0, CLASSES, size).astype(np.int32),
    }
    return Source(
        split, lambda seed, step, size: {k: v[:size] for k, v in whole.items()}, lambda: whole, size
    )


def build(model):
    splits = [
        source(name, size, k)
        for k, (name, size) in enumerate((("train", 20), ("calibration", 30), ("test", 43)))
    ]
    return Experiment(
        model, method(), *splits, None, lambda x: x.astype(jnp.float32) / 8, tuple("abcd")
    )


@pytest.fixture(params=["alike", "staged"], scope="session")
def experiment(request):
    return build({"alike": alike_model, "staged": staged_model}[request.param]())


@pytest.fixture(scope="session")
def params(experiment):
    return jax.jit(experiment.model.init)(jax.random.key(0))


@pytest.fixture(scope="session")
def alike():
    return build(alike_model())


@pytest.fixture(scope="session")
def staged():
    return build(staged_model())


@pytest.fixture(scope="session")
def operating_point():
    return {"threshold": jnp.array([0.5, 0.6, 0.55, 0.7])}
