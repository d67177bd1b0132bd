"""A tiny recursive network on 4x4 Sudoku, which exits once it says that its answer is right.

    dynexit train experiments/sudoku_trm.py

Puzzles with 4 to 6 of 16 digits given; 11,137 parameters; a segment is 4 calls of a net of one
layer, 16 of them at most. Training is in slots: an update is one segment of 64 puzzles, and a
puzzle that halts gives its slot to the next.
Hardware: two CPU cores, 1 minute of training and as much to measure. Expect: with seed 0 test
puzzles, none of which training can draw, solved exactly 100% at 16 segments, 95.9% after the first
and 100% after two; at the operating point (exit where the network says 95% right) 99.9% in 1.16
segments, 7.3% of the FLOPs."""

import dataclasses

import dynexit as dx


@dataclasses.dataclass(frozen=True)
class Settings(dx.Settings):
    """A tiny recursive network on Sudoku."""

    model: dx.models.Recursive = dx.models.Recursive(
        width=32, layers=1, segments=16, inner=1, cycles=2
    )
    method: dx.methods.Segments = dx.methods.Segments(most=16, explore=0.3, refill=True)
    data: dx.data.Sudoku = dx.data.Sudoku(box=2, fewest=4, most=6, examples=2000)
    training: dx.Training = dx.Training(
        steps=2100,
        batch_size=64,
        learning_rate=3e-3,
        weight_decay=0.1,
        checkpoint_every=700,
        log_every=60,
    )
    calibration: dx.Calibration = dx.Calibration(accept_loss=0.002)
    evaluation: dx.Evaluation = dx.Evaluation(batch_size=200, repeats=5)


SMOKE = Settings(
    model=dx.models.Recursive(width=8, layers=1, segments=2, inner=1, cycles=1),
    method=dx.methods.Segments(most=2, explore=0.3, refill=True),
    data=dx.data.Sudoku(examples=32),
    training=dx.Training(steps=4, batch_size=16, checkpoint_every=4),
    evaluation=dx.Evaluation(batch_size=8, repeats=1, tune=False),
)
