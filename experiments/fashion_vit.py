"""A vision transformer with an exit after every block, trained from scratch on Fashion-MNIST.

    dynexit data prepare fashion_mnist
    dynexit train experiments/fashion_vit.py

Hardware: two CPU cores; 37 minutes of one core's time. Expect: with seed 0 87.5% at full depth;
with `dynexit calibrate RUN --budget 0.5`, 87.5% at a mean depth of 1.8 of 6 blocks, about 3 times
faster.
"""

import dataclasses

import dynexit as dx
from dynexit.core.settings import Calibration, Evaluation, Training, at_least


@dataclasses.dataclass(frozen=True)
class Model:
    """The vision transformer."""

    patch: int = 7
    """pixels per side of a patch; divides 28"""
    width: int = 192
    """channels; a multiple of heads"""
    depth: int = 6
    """blocks, each followed by an exit"""
    heads: int = 6
    """attention heads"""

    def validate(self) -> list[str]:
        """Out-of-range values and clashes, one sentence each."""
        found = at_least(self, 1, "patch", "width", "depth", "heads")
        if not found and 28 % self.patch:
            found.append(f"patch must divide the 28 pixels of an image side, got {self.patch}")
        if not found and self.width % self.heads:
            found.append(f"width must be a multiple of heads, got {self.width} and {self.heads}")
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
        steps=2200, batch_size=128, learning_rate=1e-3, checkpoint_every=550
    )
    calibration: Calibration = Calibration(accept_loss=0.002)
    evaluation: Evaluation = Evaluation(batch_size=128, repeats=3)
    seed: int = 0
    """of weights, data order and augmentation"""


SMOKE = Settings(
    model=Model(patch=14, width=16, depth=3, heads=2),
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
        model=dx.models.Vit(patch=m.patch, width=m.width, depth=m.depth, heads=m.heads).build(
            (28, 28, 1), 10
        ),
        method=dx.methods.confidence_exits(weights=dx.objectives.weights.linear(m.depth)),
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
