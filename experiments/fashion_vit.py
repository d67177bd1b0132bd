"""A vision transformer with an exit after every block, trained from scratch on Fashion-MNIST.

    dynexit data prepare fashion_mnist
    dynexit train experiments/fashion_vit.py

Hardware: two CPU cores; 37 minutes of one core's time. Expect: with seed 0 87.5% at full depth;
with `dynexit calibrate RUN --budget 0.5`, 87.5% at a mean depth of 1.8 of 6 blocks, about 3 times
faster."""

import dataclasses

import dynexit as dx


@dataclasses.dataclass(frozen=True)
class Settings(dx.Settings):
    """A vision transformer on Fashion-MNIST."""

    model: dx.models.Vit = dx.models.Vit(patch=7, width=192, depth=6, heads=6)
    method: dx.methods.ConfidenceExits = dx.methods.ConfidenceExits(weights="linear")
    data: dx.data.FashionMnist = dx.data.FashionMnist(shift=1)
    training: dx.Training = dx.Training(steps=2200, checkpoint_every=550)
    calibration: dx.Calibration = dx.Calibration(accept_loss=0.002)
    evaluation: dx.Evaluation = dx.Evaluation(repeats=3)


SMOKE = Settings(
    model=dx.models.Vit(patch=14, width=16, depth=3, heads=2),
    data=dx.data.FashionMnist(limit=200),
    training=dx.Training(steps=30, batch_size=32, checkpoint_every=30),
    evaluation=dx.Evaluation(batch_size=8, repeats=1, timed_rows=16, tune=False),
)
