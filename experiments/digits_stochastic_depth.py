"""Stochastic depth on scikit-learn's digits: a vision transformer of twelve blocks, trained with
blocks dropped at random.

    dynexit train experiments/digits_stochastic_depth.py

Each block is dropped for whole batches, later blocks more often, and is then not computed.
`--method.last 1` trains the same network without dropping.
Hardware: two busy CPU cores, 70 seconds of training. Expect: with seed 0 98.2% at full depth and
97.3% at the operating point, after 1.34 of 12 blocks on average; without dropping 99.1% and 98.7%
after 1.32. So few digits and updates need no regulariser, and little time is gained at this size
(docs/benchmarks.md)."""

import dataclasses

import dynexit as dx


@dataclasses.dataclass(frozen=True)
class Settings(dx.Settings):
    """Stochastic depth on digits."""

    model: dx.models.Vit = dx.models.Vit(patch=4, stride=2, width=64, depth=12)
    method: dx.methods.StochasticDepth = dx.methods.StochasticDepth(last=0.5)
    data: dx.data.Digits = dx.data.Digits(shift_calibration=False)
    training: dx.Training = dx.Training(
        steps=600, batch_size=64, learning_rate=2e-3, remat=False, checkpoint_every=200
    )


SMOKE = Settings(
    model=dx.models.Vit(patch=4, stride=2, width=8, depth=3),
    training=dx.Training(remat=False, steps=10, batch_size=16, checkpoint_every=10),
    evaluation=dx.Evaluation(batch_size=8, repeats=1, timed_rows=16, tune=False),
)
