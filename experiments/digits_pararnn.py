"""ParaRNN on scikit-learn's digits, read pixel by pixel: a recurrence over time solved in parallel,
with an exit after every block.

    dynexit train experiments/digits_pararnn.py

A scan is a sequence of 64 pixels. In each block a gated recurrence runs over them, solved by
Newton's method with parallel scans in place of a loop over time; a row leaves after the block at
which the network is sure of the digit.
Hardware: two busy CPU cores, 3 minutes of training. Expect: with seed 0 34.9, 70.2, 87.6 and 88.9%
after the four blocks (a pixel at a time is a hard way to read), and 88.7% at the operating point,
after 3.15 blocks on average. The FLOPs count one of Newton's corrections a block: how many are made
is known when they have been.
"""

import dataclasses

import dynexit as dx
from dynexit.core.settings import Calibration, Evaluation, Training, at_least


@dataclasses.dataclass(frozen=True)
class Model:
    """The recurrent network."""

    width: int = 64
    """channels"""
    depth: int = 4
    """blocks, each followed by an exit"""
    corrections: int = 8
    """of Newton's method, at most"""
    tolerance: float = 1e-4
    """residual at which a row's recurrence counts as solved"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        found = at_least(self, 1, "width", "depth", "corrections")
        return found + (
            [] if self.tolerance > 0 else [f"tolerance must be above 0, got {self.tolerance}"]
        )


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run."""

    model: Model = Model()
    training: Training = Training(
        steps=600, batch_size=64, learning_rate=4e-3, checkpoint_every=200
    )
    calibration: Calibration = Calibration(accept_loss=0.005)
    evaluation: Evaluation = Evaluation(batch_size=128)
    seed: int = 0
    """of weights, data order and augmentation"""


SMOKE = Settings(
    model=Model(width=8, depth=2, corrections=3),
    training=Training(steps=10, batch_size=16, checkpoint_every=10),
    evaluation=Evaluation(batch_size=8, repeats=1, timed_rows=16, tune=False),
)


def build(settings: Settings):
    """The experiment that the settings describe."""
    import functools

    from dynexit.data.augment import random_crop, to_float

    m = settings.model
    train, calibration, test = dx.data.digits()
    scaled = functools.partial(to_float, maximum=16.0, mean=0.305, std=0.376)
    return dx.Experiment(
        model=dx.models.ParaGru(
            width=m.width, depth=m.depth, corrections=m.corrections, tolerance=m.tolerance
        ).build((64, 1), 10),
        method=dx.methods.confidence_exits(),
        train=train,
        calibration=calibration,
        test=test,
        augment=functools.partial(random_crop, padding=1),
        prepare=lambda images: scaled(images).reshape(len(images), 64, 1),
        classes=tuple("0123456789"),
    )
