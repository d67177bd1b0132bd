"""Deep thinking on mazes: trained on small ones, run for longer on large ones.

    dynexit train experiments/mazes.py

Which places lie on the way from the start to the end? A recurrent convolutional network sees the
maze anew at every iteration and is trained to make progress from wherever it stands. Large mazes
take more iterations; a row leaves once its answer is settled.
Hardware: two CPU cores, 4 to 12 minutes of training and 2 to 7 to measure. Expect: with seeds 0, 1
and 2 99, 96 and 94 of 100 mazes of size 33 right at the operating point, after 89, 80 and 99 of 200
iterations on average; the best fixed depth of no more FLOPs 77, 75 and 76 (in the paper, where
networks are four times as wide, 97% of size 59). Another machine gives other networks. With
`--data.loops 0.3 --model.steps 100`, where the way must be searched for, 59, 65 and 61 of 100 are,
and depth follows its length.
"""

import dataclasses

import dynexit as dx
from dynexit.core.settings import Calibration, Evaluation, Training, at_least, between


@dataclasses.dataclass(frozen=True)
class Model:
    """The recurrent convolutional network."""

    width: int = 32
    """channels"""
    steps: int = 200
    """iterations at most, at test time"""
    recall: bool = True
    """whether every iteration sees the input"""
    blocks: int = 1
    """residual blocks an iteration"""
    every: int = 4
    """iterations from one exit to the next"""
    walls: bool = True
    """whether places that are wall hold no state; without it a small maze shows every place how far
    from the edge it is
    """

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        found = at_least(self, 1, "width", "steps", "blocks", "every")
        return found or (
            [f"steps must be a multiple of every, got {self.steps} and {self.every}"]
            if self.steps % self.every
            else []
        )


@dataclasses.dataclass(frozen=True)
class Data:
    """The task."""

    size: int = 9
    """of the mazes in training and calibration, odd"""
    test_size: int = 33
    """of those in the test split, odd"""
    scale: int = 1
    """pixels a place is wide"""
    loops: float = 0.0
    """fraction of closed walls to open"""
    examples: int = 100
    """size of the calibration and of the test split"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        return (
            at_least(self, 3, "size", "test_size")
            + at_least(self, 1, "scale", "examples")
            + between(self, 0.0, 1.0, "loops")
        )


@dataclasses.dataclass(frozen=True)
class Method:
    """The objective and the exit."""

    most: int = 30
    """iterations in training"""
    alpha: float = 1.0
    """weight of the progressive loss; the rest is that of the full run"""
    settled: int = 1
    """exits in a row at which the answer must stand still"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        return at_least(self, 1, "most", "settled") + between(self, 0.0, 1.0, "alpha")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run."""

    model: Model = Model()
    data: Data = Data()
    method: Method = Method()
    training: Training = Training(
        steps=2500,
        batch_size=32,
        learning_rate=2e-3,
        weight_decay=0.0,
        remat=False,
        checkpoint_every=500,
        log_every=50,
    )
    calibration: Calibration = Calibration(accept_loss=0.002)
    evaluation: Evaluation = Evaluation(batch_size=16, repeats=3, timed_rows=48, tune=False)
    seed: int = 0
    """of weights and of the mazes drawn"""

    def validate(self) -> list[str]:
        """Settings that clash."""
        short = self.model.steps < self.method.most
        return (
            [
                f"model.steps must be at least method.most, got {self.model.steps} and {self.method.most}"
            ]
            if short
            else []
        )


SMOKE = Settings(
    model=Model(width=8, steps=8, every=2),
    data=Data(size=3, test_size=5, examples=32),
    method=Method(most=4),
    training=Training(remat=False, steps=20, batch_size=16, checkpoint_every=20),
    evaluation=Evaluation(batch_size=8, repeats=1, tune=False),
)


def build(settings: Settings):
    """The experiment that the settings describe."""
    from dynexit.data.tasks.mazes import free_places, mazes

    m, data, method = settings.model, settings.data, settings.method
    train, calibration, test = free_places(
        mazes(data.size, data.test_size, data.scale, data.loops, data.examples)
    )
    sizes = dict(
        width=m.width, steps=m.steps, recall=m.recall, blocks=m.blocks, every=m.every, walls=m.walls
    )
    return dx.Experiment(
        model=dx.models.DeepThinking(**sizes).build((8, 8, 3), 2),
        method=dx.methods.deep_thinking(**dataclasses.asdict(method)),
        train=train,
        calibration=calibration,
        test=test,
        augment=None,
        prepare=lambda x: x.astype("float32"),
        classes=("off the way", "on the way"),
    )
