"""A residual network with an exit after every block, on Fashion-MNIST; its stages differ in shape.

    dynexit data prepare fashion_mnist
    dynexit train experiments/fashion_resnet.py

Hardware: two CPU cores; 17 minutes of one core's time a seed. Expect: 91.6% at full depth, mean of
seeds 0, 1 and 2; with `dynexit calibrate RUN --budget 0.5` the same accuracy at half the FLOPs,
about twice as fast.
"""

import dataclasses

import dynexit as dx
from dynexit.core.settings import Calibration, Evaluation, Training, at_least


@dataclasses.dataclass(frozen=True)
class Model:
    """The residual network: 1 + 2 x blocks convolutions and the linear layer of the exit."""

    channels: tuple[int, ...] = (32, 64)
    """of each stage; every stage after the first halves the resolution"""
    blocks: tuple[int, ...] = (2, 3)
    """of each stage, each followed by an exit"""

    def validate(self) -> list[str]:
        """Out-of-range values and clashes, one sentence each."""
        found = [
            f"{n} must be at least 1 each, got {v}"
            for n, v in vars(self).items()
            if not v or min(v) < 1
        ]
        if len(self.channels) != len(self.blocks):
            found.append(
                f"channels and blocks must name as many stages, got {len(self.channels)} and {len(self.blocks)}"
            )
        found += [
            f"channels must be below 8 or multiples of 8, got {c}"
            for c in self.channels
            if c > 8 and c % 8
        ]
        return found


@dataclasses.dataclass(frozen=True)
class Data:
    """The images."""

    shift: int = 1
    """pixels by which an image is moved at most in training; half of them are mirrored too"""
    limit: int | None = None
    """examples of each split to use; None for all"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        return at_least(self, 0, "shift") + (
            at_least(self, 1, "limit") if self.limit is not None else []
        )


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run."""

    model: Model = Model()
    data: Data = Data()
    training: Training = Training(
        steps=2000, batch_size=128, learning_rate=2e-3, remat=False, checkpoint_every=500
    )
    calibration: Calibration = Calibration(accept_loss=0.002)
    evaluation: Evaluation = Evaluation(batch_size=128, repeats=3)
    seed: int = 0
    """of weights, data order and augmentation"""


SMOKE = Settings(
    model=Model(channels=(4, 8), blocks=(1, 1)),
    data=Data(limit=200),
    training=Training(steps=30, batch_size=32, checkpoint_every=30),
    evaluation=Evaluation(batch_size=8, repeats=1, timed_rows=16, tune=False),
)


def build(settings: Settings):
    """The experiment that the settings describe."""
    import functools

    from dynexit.data.augment import chain, random_crop, random_flip, to_float
    from dynexit.data.vision.fashion_mnist import FASHION_MNIST_CLASSES, fashion_mnist

    m = settings.model
    train, calibration, test = (first(source, settings.data.limit) for source in fashion_mnist())
    return dx.Experiment(
        model=dx.models.Resnet(m.channels, m.blocks).build((28, 28, 1), 10),
        method=dx.methods.confidence_exits(weights=dx.objectives.weights.linear(sum(m.blocks))),
        train=train,
        calibration=calibration,
        test=test,
        augment=chain(functools.partial(random_crop, padding=settings.data.shift), random_flip),
        prepare=functools.partial(to_float, maximum=255.0, mean=0.286, std=0.353),
        classes=FASHION_MNIST_CLASSES,
    )


def first(source, count: int | None):
    """The first `count` examples of a split, or all of it."""
    whole = source.examples()
    return (
        source
        if count is None
        else dx.data.from_arrays(source.split, whole["inputs"][:count], whole["labels"][:count])
    )
