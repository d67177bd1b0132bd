"""Stochastic depth on scikit-learn's digits: a vision transformer of twelve blocks, trained with
blocks left out at random.

    dynexit train experiments/digits_stochastic_depth.py

Each block is left out of whole updates, the later the more often, and is then not computed; a
network that got along without a block in training can be left early. `--method.last 1` is the same
network trained whole.
Hardware: two busy CPU cores, 70 seconds of training. Expect: with seed 0 98.2% at full depth and
97.3% at the operating point, after 1.34 of 12 blocks on average; trained whole 99.1% and 98.7%
after 1.32. So few digits and updates want no regulariser, and little time is gained at this size
(docs/benchmarks.md).
"""

import dataclasses

import dynexit as dx
from dynexit.core.settings import Calibration, Evaluation, Training, at_least


@dataclasses.dataclass(frozen=True)
class Model:
    """The vision transformer."""

    width: int = 64
    """channels"""
    depth: int = 12
    """blocks, each followed by an exit"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        found = at_least(self, 4, "width") + at_least(self, 1, "depth")
        return found or (
            [f"width must be a multiple of 4, got {self.width}"] if self.width % 4 else []
        )


@dataclasses.dataclass(frozen=True)
class Method:
    """What is left out."""

    last: float = 0.5
    """chance to keep the last block; 1 for all blocks, always"""
    by_row: bool = False
    """draw for every row, which saves no time"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        return (
            [] if 0 < self.last <= 1 else [f"last must be above 0 and at most 1, got {self.last}"]
        )


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run."""

    model: Model = Model()
    method: Method = Method()
    training: Training = Training(
        steps=600, batch_size=64, learning_rate=2e-3, remat=False, checkpoint_every=200
    )
    calibration: Calibration = Calibration(accept_loss=0.005)
    evaluation: Evaluation = Evaluation(batch_size=128)
    seed: int = 0
    """of weights, data order, augmentation and of what is left out"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        return (
            ["training.remat must be False: a block that is left out must not be recomputed"]
            if self.training.remat
            else []
        )


SMOKE = Settings(
    model=Model(width=8, depth=3),
    training=Training(remat=False, steps=10, batch_size=16, checkpoint_every=10),
    evaluation=Evaluation(batch_size=8, repeats=1, timed_rows=16, tune=False),
)


def build(settings: Settings):
    """The experiment that the settings describe."""
    import functools

    from dynexit.data.augment import random_crop, to_float

    m, method = settings.model, settings.method
    train, calibration, test = dx.data.digits()
    return dx.Experiment(
        model=dx.models.Vit(patch=4, stride=2, width=m.width, depth=m.depth, heads=4).build(
            (8, 8, 1), 10
        ),
        method=dx.methods.stochastic_depth(
            dx.methods.confidence_exits(), method.last, "row" if method.by_row else "batch"
        ),
        train=train,
        calibration=calibration,
        test=test,
        augment=functools.partial(random_crop, padding=1),
        prepare=functools.partial(to_float, maximum=16.0, mean=0.305, std=0.376),
        classes=tuple("0123456789"),
    )
