"""Adaptive computation time on PonderNet's parity task: the same recurrent cell, halted by a sum of
probabilities.

    dynexit train experiments/parity_act.py

Vectors of 8 entries in {-1, 0, 1}; the label is the parity of the number of +1. The answer is the
mean of the steps' answers, weighted by the halting probabilities; each step costs tau.
`--data.train-nonzeros 5` tests on 6 to 8 non-zeros and trains on fewer.
Hardware: two CPU cores, a few minutes. Expect: measured up to update 14,900 on a busy core, test
accuracy 100%, 3.8 steps of 10; in training 7.5, 6.2 and 3.8 steps after 5, 10 and 15 thousand
updates. With tau 0.001 accuracy is the same and all steps are taken.
"""

import dataclasses
from typing import Literal

import dynexit as dx
from dynexit.core.settings import Calibration, Evaluation, Training, at_least


@dataclasses.dataclass(frozen=True)
class Model:
    """The recurrent cell, its weights shared by all steps."""

    width: int = 64
    """hidden units"""
    steps: int = 10
    """steps at most"""
    halt_bias: float = -1.0
    """where the halting logit begins: 1 is two steps, -1 four"""
    epsilon: float = 0.01
    """a row has halted once its probabilities sum to more than 1 - epsilon"""
    update: Literal["accumulated", "basic"] = "accumulated"
    """accumulated, Graves' weighted sum, or basic, the update of the released Universal Transformer"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        found = (
            []
            if 0 < self.epsilon < 1
            else [f"epsilon must lie between 0 and 1, got {self.epsilon}"]
        )
        return found + at_least(self, 1, "width", "steps")


@dataclasses.dataclass(frozen=True)
class Data:
    """The task."""

    length: int = 8
    """entries of a vector"""
    train_nonzeros: int | None = None
    """most non-zeros in training and calibration; None: length"""
    test_nonzeros: int | None = None
    """most non-zeros in the test split, which has more than training ever has; None: length"""
    examples: int = 5000
    """size of the calibration and of the test split; training draws afresh without end"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        most, test = (
            self.length if n is None else n for n in (self.train_nonzeros, self.test_nonzeros)
        )
        fits = 1 <= most <= test <= self.length
        found = (
            []
            if fits
            else [
                f"train_nonzeros and test_nonzeros must be rising in 1..{self.length}, got {most} and {test}"
            ]
        )
        return found + at_least(self, 1, "length", "examples")

    def ranges(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(low, high) non-zeros of training and of the test, which are the same where training has
        as many as the test.
        """
        most, test = (
            self.length if n is None else n for n in (self.train_nonzeros, self.test_nonzeros)
        )
        return (1, most), (1 if most == test else most + 1, test)


@dataclasses.dataclass(frozen=True)
class Method:
    """The objective."""

    tau: float = 0.01
    """price of a step"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        return at_least(self, 0.0, "tau")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run."""

    model: Model = Model()
    data: Data = Data()
    method: Method = Method()
    training: Training = Training(
        steps=20_000,
        batch_size=128,
        learning_rate=1e-3,
        schedule="constant",
        warmup=0.0,
        weight_decay=0.0,
        clip=1.0,
        checkpoint_every=5000,
        log_every=100,
    )
    calibration: Calibration = Calibration(accept_loss=0.005)
    evaluation: Evaluation = Evaluation(batch_size=128)
    seed: int = 0
    """of weights and of the vectors drawn"""


SMOKE = Settings(
    model=Model(width=8, steps=3),
    data=Data(length=4, train_nonzeros=2, examples=200),
    training=Training(steps=30, batch_size=32, checkpoint_every=30),
    evaluation=Evaluation(batch_size=8, repeats=1, tune=False),
)


def build(settings: Settings):
    """The experiment that the settings describe."""
    from dynexit.data.tasks.parity import PARITY_CLASSES, parity

    nonzeros, test_nonzeros = settings.data.ranges()
    train, calibration, test = parity(
        settings.data.length, nonzeros, test_nonzeros, settings.data.examples
    )
    m = settings.model
    cell = dx.models.Gru(width=m.width, steps=m.steps, halt_bias=m.halt_bias).build(
        (settings.data.length,), 2
    )
    return dx.Experiment(
        model=dx.transforms.averaged(cell, m.epsilon, m.update),
        method=dx.methods.act(settings.method.tau),
        train=train,
        calibration=calibration,
        test=test,
        augment=None,
        prepare=None,
        classes=PARITY_CLASSES,
    )
