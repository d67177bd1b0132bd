"""A tiny recursive network on 4x4 Sudoku, which stops once it says that its answer is right.

    dynexit train experiments/sudoku_trm.py

Puzzles with 4 to 6 of 16 digits given; 11,137 parameters; a segment is 4 calls of a net of one
layer, 16 of them at most. Trained
in slots: an update is one segment of 64 puzzles, and one that halts makes room for the next.
Hardware: two CPU cores, 1 minute of training and as much to measure. Expect: with seed 0 test
puzzles, none of which training can draw, solved exactly 100% at 16 segments, 95.9% after the first
and 100% after two; at the operating point (leave where the network says 95% right) 99.9% in 1.16
segments, 7.3% of the FLOPs.
"""

import dataclasses

import dynexit as dx
from dynexit.core.settings import Calibration, Evaluation, Training, at_least, between


@dataclasses.dataclass(frozen=True)
class Model:
    """The net, its weights shared by all updates of latent and answer."""

    width: int = 32
    """D, features of a place"""
    layers: int = 1
    """of the net"""
    segments: int = 16
    """at most, at inference"""
    inner: int = 1
    """latent updates a cycle"""
    cycles: int = 2
    """cycles a segment; the last carries the gradient"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        return at_least(self, 1, "width", "layers", "segments", "inner", "cycles")


@dataclasses.dataclass(frozen=True)
class Data:
    """The puzzles."""

    fewest: int = 4
    """digits given, at least"""
    most: int = 6
    """digits given, at most"""
    examples: int = 2000
    """size of the calibration and of the test split; training draws afresh without end"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        found = (
            []
            if self.fewest <= self.most <= 16
            else [f"most must lie in {self.fewest}..16, got {self.most}"]
        )
        return found + at_least(self, 4, "fewest") + at_least(self, 1, "examples")


@dataclasses.dataclass(frozen=True)
class Method:
    """How it is trained, and when a row leaves."""

    segments: int = 16
    """segments in training, at most"""
    explore: float = 0.3
    """fraction of rows that may not halt before a drawn number of segments"""
    refill: bool = True
    """one update a segment, and a new puzzle in the place of one that halted; else one update for
    all segments of a batch
    """
    settled: bool = False
    """leave where the latent has settled, not where the network says that it is right"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        return at_least(self, 1, "segments") + between(self, 0.0, 1.0, "explore")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run."""

    model: Model = Model()
    data: Data = Data()
    method: Method = Method()
    training: Training = Training(
        steps=2100,
        batch_size=64,
        learning_rate=3e-3,
        warmup=0.1,
        weight_decay=0.1,
        clip=1.0,
        checkpoint_every=700,
        log_every=60,
    )
    calibration: Calibration = Calibration(accept_loss=0.002)
    evaluation: Evaluation = Evaluation(batch_size=200, repeats=5)
    seed: int = 0
    """of weights and of the puzzles drawn"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        short = self.model.segments < self.method.segments
        return (
            [f"model.segments must be at least method.segments, got {self.model.segments}"]
            if short
            else []
        )


SMOKE = Settings(
    model=Model(width=8, segments=2, cycles=1),
    data=Data(examples=32),
    method=Method(segments=2),
    training=Training(steps=4, batch_size=16, checkpoint_every=4),
    evaluation=Evaluation(batch_size=8, repeats=1, tune=False),
)


def build(settings: Settings):
    """The experiment that the settings describe."""
    from dynexit.data.tasks.sudoku import sudoku

    model, data, method = settings.model, settings.data, settings.method
    train, calibration, test = sudoku(2, (data.fewest, data.most), examples=data.examples)
    return dx.Experiment(
        model=dx.models.Recursive(
            width=model.width,
            segments=model.segments,
            inner=model.inner,
            cycles=model.cycles,
            layers=model.layers,
        ).build(dx.Tokens(5, 16), 4),
        method=dx.methods.segments(
            method.segments,
            explore=method.explore,
            rule="settled" if method.settled else "right",
            refill=method.refill,
        ),
        train=train,
        calibration=calibration,
        test=test,
        augment=None,
        prepare=None,
        classes=("1", "2", "3", "4"),
    )
