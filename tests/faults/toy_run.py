"""A network of 3 blocks on 64 points, for runs that are stopped, killed and damaged."""

import dataclasses
import os
import time

import dynexit as dx


@dataclasses.dataclass(frozen=True)
class Settings:
    """A small network on random points."""

    training: dx.Training = dx.Training(
        steps=40, batch_size=8, checkpoint_every=5, log_every=1, eval_every=0, wandb="off"
    )
    calibration: dx.Calibration = dx.Calibration(accept_loss=0.5)
    evaluation: dx.Evaluation = dx.Evaluation(batch_size=8, repeats=1, tune=False)
    seed: int = 0
    """of weights and data order"""
    width: int = 8
    """features"""
    unrolled: int = 0
    """matrix products before the blocks, each compiled on its own"""
    salt: float = 0.0
    """a constant of the program; another one is compiled again"""


SMOKE = Settings()


def build(settings):
    import jax
    import jax.numpy as jnp
    import numpy as np

    from dynexit.core.types import Experiment, Model
    from dynexit.data.source import from_arrays
    from dynexit.engine.steps import stacked_step

    width, depth = settings.width, 3

    def init(key):
        keys = jax.random.split(key, 3)
        normal = lambda k, *shape: jax.random.normal(keys[k], shape) * 0.3
        return {
            "embed": normal(0, 4, width),
            "blocks": normal(1, depth, width, width),
            "head": normal(2, width, 3),
        }

    def embed(params, inputs):
        h = inputs @ params["embed"] + settings.salt
        for k in range(settings.unrolled):
            h = jnp.sin(h @ params["blocks"][k % depth] * (1.0 + 1e-3 * k))
        return h

    def steps(params):
        block = lambda kernel, h: h + jnp.tanh(h @ kernel)
        return stacked_step(block, lambda _, h: h @ params["head"], params["blocks"])

    rng = np.random.default_rng(0)
    points = rng.normal(size=(64, 4)).astype(np.float32)
    labels = np.argmax(points[:, :3], axis=1).astype(np.int32)
    splits = [
        from_arrays(split, points + k / 100, labels)
        for k, split in enumerate(("train", "calibration", "test"))
    ]
    draw = splits[0].batch
    delay = float(os.environ.get("TOY_DELAY", 0))  # seconds that each batch takes
    slow = lambda seed, step, size: (time.sleep(delay), draw(seed, step, size))[1]
    train = splits[0]._replace(batch=slow) if delay else splits[0]
    splits[1] = _watched(splits[1])
    model = Model(init, embed, steps, depth, ("block00", "block01", "block02"))
    method = dx.methods.ConfidenceExits().build()
    return Experiment(model, method, train, *splits[1:], None, None, ("a", "b", "c"))


def _watched(source):
    """A split whose reads take `TOY_EVAL_DELAY` seconds, each with a line in the file `TOY_READS`."""
    import numpy as np

    file, delay = os.environ.get("TOY_READS"), float(os.environ.get("TOY_EVAL_DELAY", 0))
    if file is None:
        return source

    class Watched(np.ndarray):
        def __getitem__(self, rows):
            with open(file, "a") as lines:
                lines.write("read\n")
            time.sleep(delay)
            return np.asarray(self)[rows]

    examples = source.examples()
    watched = {**examples, "inputs": examples["inputs"].view(Watched)}
    return source._replace(examples=lambda: watched)
