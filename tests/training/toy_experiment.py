"""A network of 3 blocks on 48 points, that trains in a second; as a program it trains in the folder
named by its argument.
"""

import dataclasses
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.settings import Training
from dynexit.core.types import Experiment, Method, Model, Source
from dynexit.engine.steps import stacked_step

BLOCKS, WIDTH, CLASSES, EXAMPLES = 3, 8, 3, 48
SETTINGS = Training(
    steps=12,
    batch_size=8,
    learning_rate=0.05,
    checkpoint_every=4,
    log_every=3,
    keep=2,
    eval_every=0,
)


def init(key):
    a, b, c = jax.random.split(key, 3)
    return {
        "embed": {"kernel": jax.random.normal(a, (4, WIDTH)) * 0.5},
        "blocks": {
            "kernel": jax.random.normal(b, (BLOCKS, WIDTH, WIDTH)) * 0.3,
            "bias": jnp.zeros((BLOCKS, WIDTH)),
        },
        "head": {"kernel": jax.random.normal(c, (WIDTH, CLASSES)) * 0.5},
    }


def steps(params):
    block = lambda p, h: h + jnp.tanh(h @ p["kernel"] + p["bias"][None])
    return stacked_step(block, lambda p, h: h @ params["head"]["kernel"], params["blocks"])


def objective(outputs, labels, progress):
    rows = jnp.arange(labels.shape[0])
    losses = -jax.nn.log_softmax(outputs)[:, rows, labels]
    return losses.mean(0), {"last_exit_loss": losses[-1].mean(), "progress": progress}


def points():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(EXAMPLES, 4)).astype(np.float32)
    return {"inputs": inputs, "labels": np.argmax(inputs[:, :CLASSES], axis=1).astype(np.int32)}


def batch(seed, step, size):
    chosen = np.random.default_rng((seed, step)).integers(EXAMPLES, size=size)
    return {name: array[chosen] for name, array in points().items()}


def build():
    model = Model(
        init,
        lambda p, x: x @ p["embed"]["kernel"],
        steps,
        BLOCKS,
        ("block00", "block01", "block02"),
    )
    method = Method(objective, None, None, None)
    sources = [Source(split, batch, points, EXAMPLES) for split in ("train", "calibration", "test")]
    augment = lambda key, x: x + 0.01 * jax.random.normal(key, x.shape)
    return Experiment(model, method, *sources, augment, None, ("a", "b", "c"))


def long_settings():
    """Checkpoints only where a run stops."""
    return dataclasses.replace(SETTINGS, steps=150, checkpoint_every=1000, log_every=5)


if __name__ == "__main__":
    from dynexit.training.loop import fit

    slow = lambda seed, step, size: (time.sleep(0.03), batch(seed, step, size))[1]
    experiment = build()
    experiment = experiment._replace(train=experiment.train._replace(batch=slow))
    fitted = fit(experiment, long_settings(), Path(sys.argv[1]), seed=3, progress=False)
    print(fitted.step, fitted.stopped)
