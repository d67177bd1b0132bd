"""A continuous thought machine on parity: it looks at the bits tick by tick, and answers once it is
certain.

    dynexit train experiments/parity_ctm.py

At each place of a vector of 8 bits, is the number of ones so far odd? All places are answered at
once, at every tick, and a vector counts as right where all are. There are but 256 such vectors: the
test split repeats those of training.
Hardware: two CPU cores, a minute and half as much to measure. Expect: with seeds 0, 1 and 2 a
vector's most certain of 16 ticks is right for 100, 93 and 99.7% of the test split; on another
machine, which rounds otherwise, for 99.3, 63 and 100%. The last ticks themselves lose some of it,
so the most certain answer so far is kept. Leaving once certain takes 14.3, 15.1 and 13.7 ticks with
99.7, 92.8 and 99.7% right, where 14, 15 and 13 ticks for all have 94, 85 and 79%. No loss asks for
fewer ticks, and ticks as
small as these are not quicker for leaving: 0.8 of the speed of full depth.
"""

import dataclasses

import dynexit as dx
from dynexit.core.settings import Calibration, Evaluation, Training, at_least


@dataclasses.dataclass(frozen=True)
class Model:
    """The neurons, their weights shared by all ticks."""

    width: int = 96
    """D, neurons"""
    ticks: int = 16
    """at most"""
    memory: int = 8
    """M, ticks of its own history that a neuron sees"""
    hidden: int = 4
    """units of each neuron's own model"""
    features: int = 32
    """of keys, values and query"""
    heads: int = 2
    """of attention"""
    action: int = 32
    """pairs of neurons that the query is read from"""
    out: int = 48
    """pairs of neurons that the answers are read from"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        found = at_least(
            self, 1, "width", "ticks", "memory", "hidden", "features", "heads", "action", "out"
        )
        odd = not found and self.features % self.heads
        return found + (
            [f"features must be a multiple of heads, got {self.features} and {self.heads}"]
            if odd
            else []
        )


@dataclasses.dataclass(frozen=True)
class Data:
    """The task."""

    length: int = 8
    """bits of a vector, each with an answer; there are 2 ** length of them, so a short one's test
    split repeats the training's
    """
    examples: int = 2000
    """size of the calibration and of the test split; training draws afresh without end"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        return at_least(self, 1, "length", "examples")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run."""

    model: Model = Model()
    data: Data = Data()
    training: Training = Training(
        steps=1500,
        batch_size=64,
        learning_rate=3e-3,
        warmup=0.05,
        weight_decay=0.0,
        clip=1.0,
        remat=False,
        checkpoint_every=500,
        log_every=25,
    )
    calibration: Calibration = Calibration(accept_loss=0.005)
    evaluation: Evaluation = Evaluation(batch_size=200, repeats=3, tune=False)
    seed: int = 0
    """of weights and of the vectors drawn"""


SMOKE = Settings(
    model=Model(width=8, ticks=3, memory=2, hidden=2, features=4, heads=1, action=4, out=4),
    data=Data(length=4, examples=64),
    training=Training(remat=False, steps=8, batch_size=16, checkpoint_every=8),
    evaluation=Evaluation(batch_size=8, repeats=1, tune=False),
)


def build(settings: Settings):
    """The experiment that the settings describe."""
    from dynexit.data.tasks.prefix_sums import prefix_sums

    model, data = settings.model, settings.data
    train, calibration, test = prefix_sums(data.length, examples=data.examples)
    return dx.Experiment(
        model=dx.transforms.best_so_far(
            dx.models.Ctm(answers=data.length, **dataclasses.asdict(model)).build(
                (data.length, 1), 2
            )
        ),
        method=dx.methods.ctm(),
        train=train,
        calibration=calibration,
        test=test,
        augment=None,
        prepare=None,
        classes=("even", "odd"),
    )
