"""A template to copy for a new method: a residual MLP on digits; rows exit at low entropy.

    dynexit train experiments/template.py

Hardware: two CPU cores, under a minute. Expect: test accuracy of about 98% at full depth, and most
rows exit at the first exit. (State the command, the hardware, the minutes and the numbers to
expect, so that the next user knows whether the run worked.)
"""

import dataclasses

import dynexit as dx  # loads no JAX; import JAX inside the functions


# 1. A model. Its fields are settings, `--model.depth 6`; `build` is called once they are valid.
@dataclasses.dataclass(frozen=True)
class ResidualMlp:
    """Blocks h + W2 relu(W1 norm(h)) with a linear exit head each."""

    width: int = 128
    """channels"""
    depth: int = 6
    """blocks, each followed by an exit"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        fields = {"width": self.width, "depth": self.depth}
        return [f"{name} must be at least 1, got {n}" for name, n in fields.items() if n < 1]

    def build(self, inputs: tuple[int, ...], classes: int) -> "dx.Model":
        """The model; each part is a pair (init(key) -> params, apply(params, x))."""
        import jax
        import jax.numpy as jnp

        def dense(rows, columns):
            return lambda key: jax.random.normal(key, (rows, columns)) / rows**0.5

        def norm(h):
            return (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-6)

        def block_init(key):
            first, second = jax.random.split(key)
            square = dense(self.width, self.width)
            return {"up": square(first), "down": square(second)}

        pixels = inputs[0] * inputs[1] * inputs[2]
        embed = dense(pixels, self.width), lambda p, x: x.reshape(len(x), -1) @ p
        block = block_init, lambda p, h: h + jax.nn.relu(norm(h) @ p["up"]) @ p["down"]
        head = dense(self.width, classes), lambda p, h: norm(h) @ p
        return dx.build(embed, block, head, self.depth)


# 2. A method: a loss for each example, the rule by which a row exits, and candidate thresholds.
@dataclasses.dataclass(frozen=True)
class EntropyExits:
    """Mean cross-entropy over all exits; a row exits once its entropy is below a threshold."""

    candidates: int = 40
    """thresholds that calibration compares"""

    def build(self) -> "dx.Method":
        """The method."""
        import jax.numpy as jnp
        import numpy as np

        def objective(outputs, labels, progress):  # outputs [E, B, C]; progress in 0..1
            losses = dx.objectives.multi_exit_cross_entropy(outputs, labels)  # [E, B]
            return losses.mean(axis=0), {"loss_last": losses[-1].mean()}  # [B], and metrics

        def criterion(operating_point):  # thresholds are traced: another one compiles nothing
            return dx.criteria.entropy_below(operating_point["threshold"])

        def predict(output):  # one exit's output [b, C] to classes int32 [b]
            return jnp.argmax(output, axis=-1).astype(jnp.int32)

        # no entropy is below 0, so 0 is full depth; it is always among the candidates
        thresholds = np.linspace(0.0, np.log(10), self.candidates)
        return dx.Method(objective, criterion, dx.calibration.levels(thresholds, full=0.0), predict)


# 3. The settings of a run. Thresholds come from the calibration split, the report from the test.
@dataclasses.dataclass(frozen=True)
class Settings(dx.Settings):
    """Entropy exits on digits."""

    model: ResidualMlp = ResidualMlp()
    method: EntropyExits = EntropyExits()
    data: dx.data.Digits = dx.data.Digits(shift=0)
    training: dx.Training = dx.Training(steps=1000)


# The same job in seconds: `--smoke`. The tests run it.
SMOKE = Settings(
    model=ResidualMlp(width=32, depth=3),
    training=dx.Training(steps=60, batch_size=32, checkpoint_every=30),
    evaluation=dx.Evaluation(batch_size=16, repeats=1, tune=False),
)
