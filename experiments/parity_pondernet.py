"""PonderNet on its parity task: a recurrent cell that learns how many steps to think.

    dynexit train experiments/parity_pondernet.py

Vectors of 8 entries in {-1, 0, 1}; the label is the parity of the number of +1. The prior asks for
about 1 / 0.3 steps. `--data.train-nonzeros 6` trains on at most 6 non-zeros and tests on 7 and 8;
`--method.fixed-depth True` is the plain network.
Hardware: two CPU cores, 1 minute. Expect: test accuracy 100%, step 1 alone about 57%; in training
the Q-exit (q = 0.5) takes 8.3, 5.6, 4.2 and 3.5 steps after 5, 10, 15 and 20 thousand updates, and
the operating point 2.
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
    halt_reads: Literal["state", "concat", "diff"] = "state"
    """what halting is decided from: state, concat (it beside the one before, PALBERT) or diff
    (their difference)
    """
    halt_layers: int = 0
    """tanh layers before the halting logit; 3 in PALBERT"""
    halt_detach: bool = False
    """whether halting sends no gradient into the cell"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        return at_least(self, 1, "width", "steps") + at_least(self, 0, "halt_layers")


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

    fixed_depth: bool = False
    """train the last step alone and run all steps: the plain recurrent network; the other settings
    here then count for nothing
    """
    prior_rate: float = 0.3
    """rate of the geometric prior; a hint of 1 / rate steps"""
    beta: float = 0.01
    """weight of the divergence from the prior"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        found = (
            []
            if 0 < self.prior_rate < 1
            else [f"prior_rate must lie between 0 and 1, got {self.prior_rate}"]
        )
        return found + at_least(self, 0.0, "beta")


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
    data=Data(length=4, examples=200),
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
    m, method = settings.model, settings.method
    halting = dict(halt_reads=m.halt_reads, halt_layers=m.halt_layers, halt_detach=m.halt_detach)
    ponder = dx.methods.pondernet(prior_rate=method.prior_rate, beta=method.beta)
    return dx.Experiment(
        model=dx.models.Gru(width=m.width, steps=m.steps, **halting).build(
            (settings.data.length,), 2
        ),
        method=dx.methods.fixed_depth() if method.fixed_depth else ponder,
        train=train,
        calibration=calibration,
        test=test,
        augment=None,
        prepare=None,
        classes=PARITY_CLASSES,
    )
