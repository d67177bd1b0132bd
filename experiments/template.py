"""Copy this file to begin a new method: here a residual MLP on digits whose rows leave when the
entropy is low.

    dynexit train experiments/template.py

Hardware: two CPU cores, under a minute. Expect: test accuracy about 98% at full depth, most rows
leaving at the first exit. (State command, hardware, minutes and the number to expect, so that
whoever runs it next knows whether it worked.)
"""

import dataclasses

# loads no JAX: a wrong setting is refused in a second, so keep other imports inside the functions
import dynexit as dx
from dynexit.core.settings import Calibration, Evaluation, Training, at_least

# 1. Settings: every number that shapes the run, typed, with a sentence each. All of them are
# options: --model.depth 6.


@dataclasses.dataclass(frozen=True)
class Model:
    """The network."""

    width: int = 128
    """channels"""
    depth: int = 6
    """blocks, each followed by an exit"""

    def validate(self) -> list[str]:
        """What is out of range or clashes, one sentence each."""
        return at_least(self, 1, "width", "depth")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run; `training`, `calibration`, `evaluation` and `seed` must be here, the
    rest is yours.
    """

    model: Model = Model()
    training: Training = Training(steps=1000, batch_size=128, learning_rate=1e-3)
    calibration: Calibration = Calibration(accept_loss=0.005)
    evaluation: Evaluation = Evaluation(batch_size=128)
    seed: int = 0
    """of weights, data order and augmentation"""


# The same job in seconds: `--smoke`, and the tests run it.
SMOKE = Settings(
    model=Model(width=32, depth=3),
    training=Training(steps=60, batch_size=32, checkpoint_every=30, warmup=0.1),
    evaluation=Evaluation(batch_size=16, repeats=1, tune=False),
)


# 2. A model: pure functions of a plain dict of arrays. dx.models has ready ones; this one is
# written out.


def residual_mlp(width: int, depth: int, inputs: int, classes: int):
    """Blocks h + W2 relu(W1 norm(h)), their weights stacked on a leading `[depth]`; one linear exit
    head each.
    """
    import jax
    import jax.numpy as jnp

    def init(key):
        keys = jax.random.split(key, 4)
        draw = lambda key, *shape: jax.random.normal(key, shape) / shape[-2] ** 0.5
        blocks = {
            "up": draw(keys[0], depth, width, width),
            "down": draw(keys[1], depth, width, width),
        }
        return {
            "embed": draw(keys[2], inputs, width),
            "blocks": {**blocks, "head": draw(keys[3], depth, width, classes)},
        }

    def norm(h):
        return (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-6)

    def embed(params, x):  # x [B, 8, 8, 1] -> state [B, width]
        return x.reshape(len(x), -1) @ params["embed"]

    def block(p, h):  # p is one block's share of params["blocks"]
        return h + jax.nn.relu(norm(h) @ p["up"]) @ p["down"]

    def head(p, h):  # what an exit reads: logits [b, classes], or a dict with more than that
        return norm(h) @ p["head"]

    steps = lambda params: dx.stacked_step(block, head, params["blocks"])
    return dx.Model(init, embed, steps, depth, tuple(f"block{i:02d}" for i in range(depth)))


# 3. A method: how it is trained, when a row leaves, and which operating points calibration may
# choose from.


def entropy_exits(count: int = 40):
    """Mean cross-entropy over all exits; a row leaves where the entropy is below a threshold shared
    by all exits.
    """
    import jax.numpy as jnp
    import numpy as np

    def objective(outputs, labels, progress):  # outputs [E, B, C]; progress runs from 0 to 1
        losses = dx.objectives.multi_exit_cross_entropy(
            outputs, labels
        )  # [E, B]: losses are never reduced for you
        return losses.mean(axis=0), {
            "loss_last": losses[-1].mean()
        }  # a loss per example, and what to log

    def criterion(operating_point):  # thresholds are data: changing them compiles nothing anew
        return dx.criteria.entropy_below(operating_point["threshold"])

    # Thresholds to choose from; no entropy is below 0, so that one is full depth.
    candidates = dx.calibration.levels(np.linspace(0.0, np.log(10), count), full=0.0)

    def predict(output):  # one exit's output -> class
        return jnp.argmax(output, axis=-1).astype(jnp.int32)

    return dx.Method(objective, criterion, candidates, predict)


# 4. Put together. Splits are disjoint: thresholds come from `calibration`, the report from `test`.


def build(settings: Settings):
    """The experiment that the settings describe."""

    model = residual_mlp(settings.model.width, settings.model.depth, inputs=64, classes=10)
    train, calibration, test = dx.data.digits()
    return dx.Experiment(
        model=model,
        method=entropy_exits(),
        train=train,
        calibration=calibration,
        test=test,
        augment=None,  # or augment(key, inputs) -> inputs, on the device, in training alone
        prepare=lambda x: x.astype("float32") / 16.0,  # bytes to floats, on the device
        classes=tuple("0123456789"),
    )
