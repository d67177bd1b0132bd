"""ParaRNN on scikit-learn's digits, read pixel by pixel: a recurrence over time solved in parallel,
with an exit after every block.

    dynexit train experiments/digits_pararnn.py

A scan is a sequence of 64 pixels. In each block a gated recurrence runs over them. Newton's method
with parallel scans solves it in place of a loop over time.
Hardware: two busy CPU cores, 3 minutes of training. Expect: with seed 0 34.9, 70.2, 87.6 and 88.9%
after the four blocks (a pixel at a time is a hard way to read), and 88.7% at the operating point,
after 3.15 blocks on average. The FLOPs count one Newton correction a block, because the number of
corrections is known only after the run."""

import dataclasses

import dynexit as dx


@dataclasses.dataclass(frozen=True)
class Settings(dx.Settings):
    """A parallel recurrent network on the pixels of digits."""

    model: dx.models.ParaGru = dx.models.ParaGru(width=64, depth=4, tolerance=1e-4)
    method: dx.methods.ConfidenceExits = dx.methods.ConfidenceExits()
    data: dx.data.Digits = dx.data.Digits(sequence=True, shift_calibration=False)
    training: dx.Training = dx.Training(
        steps=600, batch_size=64, learning_rate=4e-3, checkpoint_every=200
    )


SMOKE = Settings(
    model=dx.models.ParaGru(width=8, depth=2, corrections=3),
    training=dx.Training(steps=10, batch_size=16, checkpoint_every=10),
    evaluation=dx.Evaluation(batch_size=8, repeats=1, timed_rows=16, tune=False),
)
