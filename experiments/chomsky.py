"""The Chomsky suite: which networks generalise from short strings to long ones, and what depth by
row adds.

    dynexit train experiments/chomsky.py --data.task parity_check --network lstm

Trained on strings of 1 to 20 tokens, tested on 21 to 60; chance is 50% or 20%. Three plain networks
(`elman`, `lstm`, `transformer`) and three that iterate: `universal` (adaptive computation time),
`thinking` (deep thinking, a recurrent convolution) and `recurrent` (recurrent depth, a decoder).
Accuracy is the share of the answer's tokens that are right.
Hardware: two CPU cores, 1 to 3 minutes each. Expect: the table in docs/benchmarks.md; recurrent
layers learn parity for any length; networks that iterate over the whole string do not in so few
updates."""

import dataclasses
from typing import Literal

import dynexit as dx


@dataclasses.dataclass(frozen=True)
class Settings(dx.Settings):
    """One network on one task of the Chomsky suite."""

    network: Literal["elman", "lstm", "transformer", "universal", "thinking", "recurrent"] = "lstm"
    """which network is trained, and with its own method"""
    width: int = 64
    """channels"""
    steps: int = 64
    """iterations at most of `thinking`; a quarter of it of `recurrent`, an eighth of `universal`"""
    most: int = 16
    """iterations in training of `thinking`, and four times the mean of `recurrent`"""
    tau: float = 0.01
    """time penalty of an iteration of `universal`"""
    data: dx.data.Chomsky = dx.data.Chomsky(length=20, test_length=60, examples=400)
    training: dx.Training = dx.Training(
        steps=1000, batch_size=32, learning_rate=2e-3, weight_decay=0.0, remat=False, log_every=50
    )
    evaluation: dx.Evaluation = dx.Evaluation(batch_size=32, repeats=3, timed_rows=128, tune=False)

    def validate(self) -> list[str]:
        """Values out of range and settings that clash, one sentence each."""
        found = [
            f"{name} must be a positive multiple of 8, got {value}"
            for name, value in (("width", self.width), ("steps", self.steps))
            if value < 8 or value % 8
        ]
        if self.network == "thinking" and self.steps < self.most:
            found.append(f"steps must be at least most, got {self.steps} and {self.most}")
        return found + ([] if self.most >= 4 else [f"most must be at least 4, got {self.most}"])

    def build(self) -> "dx.Experiment":
        """The experiment of one network and its method."""
        model, method = self.parts()
        data = dataclasses.replace(self.data, one_hot=self.network == "thinking").build()
        classes = data.classes
        if self.network in ("transformer", "recurrent"):  # decoders answer with tokens
            classes = tuple(map(str, range(data.inputs.vocabulary)))
        splits = data.train, data.calibration, data.test
        built = model.build(data.inputs, len(classes)), share(method.build())
        return dx.Experiment(*built, *splits, data.augment, data.prepare, classes)

    def parts(self) -> tuple:
        """The constructors of the network and of its method."""
        models, methods, mean = dx.models, dx.methods, self.most / 4
        sizes = dict(width=self.width, heads=4)
        match self.network:
            case "transformer":  # a decoder of four blocks, each run once
                decoder = models.RecurrentDepth(**sizes, steps=1, core=2, mean_steps=1)
                return decoder, methods.FixedDepth()
            case "universal":
                universal = models.UniversalTransformer(
                    **sizes, steps=self.steps // 8, halt_bias=-1.0
                )
                return universal, methods.Act(self.tau)
            case "thinking":
                thinking = models.DeepThinking(width=self.width // 2, steps=self.steps, every=4)
                return thinking, methods.DeepThinking(self.most)
            case "recurrent":
                decoder = models.RecurrentDepth(
                    **sizes, steps=self.steps // 4, mean_steps=round(mean) + 1
                )
                return decoder, methods.RecurrentDepth(mean, truncate=4)
        return models.Rnn(width=self.width, cell=self.network), methods.FixedDepth()


SMOKE = Settings(
    network="thinking",
    width=8,
    steps=8,
    most=4,
    data=dx.data.Chomsky(task="reverse_string", length=4, test_length=6, examples=32),
    training=dx.Training(remat=False, steps=20, batch_size=16, checkpoint_every=20),
    evaluation=dx.Evaluation(batch_size=8, repeats=1, tune=False),
)


def share(method: "dx.Method") -> "dx.Method":
    """The method, with the share of the answer's tokens that are right as its score."""
    from dynexit.core.labels import share as score

    return method._replace(score=score)
