"""A residual network with an exit after every block, on Fashion-MNIST; its stages differ in shape.

    dynexit data prepare fashion_mnist
    dynexit train experiments/fashion_resnet.py

Hardware: two CPU cores; 17 minutes of one core's time a seed. Expect: 91.6% at full depth, mean of
seeds 0, 1 and 2; with `dynexit calibrate RUN --budget 0.5` the same accuracy at half the FLOPs,
about twice as fast."""

import dataclasses

import fashion_vit

import dynexit as dx


@dataclasses.dataclass(frozen=True)
class Settings(fashion_vit.Settings):
    """A residual network on Fashion-MNIST."""

    model: dx.models.Resnet = dx.models.Resnet(channels=(32, 64), blocks=(2, 3))
    training: dx.Training = dx.Training(
        steps=2000, learning_rate=2e-3, remat=False, checkpoint_every=500
    )


SMOKE = Settings(
    model=dx.models.Resnet(channels=(4, 8), blocks=(1, 1)),
    data=fashion_vit.SMOKE.data,
    training=fashion_vit.SMOKE.training,
    evaluation=fashion_vit.SMOKE.evaluation,
)
