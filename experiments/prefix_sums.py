"""Deep thinking on prefix sums: trained on 32 bits, run for longer on 512.

    dynexit train experiments/prefix_sums.py

At each place, is the number of ones so far odd? A recurrent convolutional network sees the input
anew at every iteration and is trained to make progress from wherever it stands. Long strings take
more iterations; a row leaves once its answer has settled.
Hardware: two CPU cores, 4 minutes and 1 more to measure. Expect: with each of the seeds 0, 1 and 2
all 200 strings of 512 bits right, after 193, 187 and 196 iterations of 400 on average (the best
fixed depth of no more FLOPs: 99.5%, 100%, 100%). With `--method.mean 12` it is trained as recurrent
depth is (Huginn), 13 iterations on average; the table is in docs/benchmarks.md.
"""

import dataclasses

import dynexit as dx
from dynexit.core.settings import Calibration, Evaluation, Training, at_least, between


@dataclasses.dataclass(frozen=True)
class Model:
    """The recurrent convolutional network."""

    width: int = 32
    """channels"""
    steps: int = 400
    """iterations at most, at test time"""
    recall: bool = True
    """whether every iteration sees the input"""
    blocks: int = 2
    """residual blocks an iteration"""
    every: int = 8
    """iterations from one exit to the next"""

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

    length: int = 32
    """bits in training and calibration"""
    test_length: int = 512
    """bits in the test split"""
    examples: int = 200
    """size of the calibration and of the test split"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        return at_least(self, 1, "length", "test_length", "examples")


@dataclasses.dataclass(frozen=True)
class Method:
    """The objective and the exit."""

    most: int = 32
    """iterations in training, where there is no mean"""
    alpha: float = 1.0
    """weight of the progressive loss, where there is no mean; the rest is that of the full run"""
    settled: int = 1
    """exits in a row at which the answer must stand still"""
    mean: float | None = None
    """trains as recurrent depth does (Huginn): a log-normal Poisson number of iterations, one more
    than this on average
    """
    truncate: int = 8
    """iterations that carry gradients then"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        found = (
            [f"mean must be above 0, got {self.mean}"]
            if self.mean is not None and not self.mean > 0
            else []
        )
        if self.mean is not None and self.settled != 1:
            found.append(f"settled must be 1 where mean is given, got {self.settled}")
        return (
            found
            + at_least(self, 1, "most", "settled", "truncate")
            + between(self, 0.0, 1.0, "alpha")
        )


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run."""

    model: Model = Model()
    data: Data = Data()
    method: Method = Method()
    training: Training = Training(
        steps=2000,
        batch_size=64,
        learning_rate=2e-3,
        weight_decay=0.0,
        remat=False,
        checkpoint_every=500,
        log_every=50,
    )
    calibration: Calibration = Calibration(accept_loss=0.002)
    evaluation: Evaluation = Evaluation(batch_size=16, repeats=3, timed_rows=32, tune=False)
    seed: int = 0
    """of weights and of the strings drawn"""

    def validate(self) -> list[str]:
        """Settings that clash."""
        short = self.method.mean is None and self.model.steps < self.method.most
        return (
            [
                f"model.steps must be at least method.most, got {self.model.steps} and {self.method.most}"
            ]
            if short
            else []
        )


SMOKE = Settings(
    model=Model(width=8, steps=8, every=2),
    data=Data(length=8, test_length=12, examples=64),
    method=Method(most=4),
    training=Training(remat=False, steps=20, batch_size=16, checkpoint_every=20),
    evaluation=Evaluation(batch_size=8, repeats=1, tune=False),
)


def build(settings: Settings):
    """The experiment that the settings describe."""
    from dynexit.core.labels import exact
    from dynexit.data.tasks.prefix_sums import prefix_sums

    model, data, method = settings.model, settings.data, settings.method
    train, calibration, test = prefix_sums(data.length, data.test_length, data.examples)
    if method.mean is None:
        trained = dx.methods.deep_thinking(method.most, method.alpha, settled=method.settled)
    else:
        trained = dx.methods.recurrent_depth(method.mean, method.truncate, noise=0.0, score=exact)
    return dx.Experiment(
        model=dx.models.DeepThinking(
            width=model.width,
            steps=model.steps,
            recall=model.recall,
            blocks=model.blocks,
            every=model.every,
        ).build((8, 1), 2),
        method=trained,
        train=train,
        calibration=calibration,
        test=test,
        augment=None,
        prepare=None,
        classes=("even", "odd"),
    )
