"""A universal transformer whose positions halt on their own reverses strings of digits.

    dynexit train experiments/reverse_universal_transformer.py

Strings of 1 to 8 digits, then blanks; at every position of the string the answer is the digit at
its mirror image. With `--data.test-length 16` the test has longer strings, whose positions are
never seen unless `--data.shift 8` moves those of training.
Hardware: two CPU cores, 4 minutes. Expect: measured at update 1,933 of a schedule of 4,000, all
positions of all strings right, every row after 2 iterations of 6; 7% of the rows are right after
iteration 1."""

import dataclasses

import dynexit as dx


@dataclasses.dataclass(frozen=True)
class Settings(dx.Settings):
    """A universal transformer on reversed strings."""

    model: dx.models.UniversalTransformer = dx.models.UniversalTransformer(
        width=64, heads=4, hidden=128, steps=6, halt_bias=-1.0
    )
    method: dx.methods.Act = dx.methods.Act(tau=0.01)
    data: dx.data.Copying = dx.data.Copying(length=8, backwards=True, examples=2000)
    training: dx.Training = dx.Training(
        steps=2000, batch_size=64, warmup=0.05, weight_decay=0.0, log_every=50
    )
    evaluation: dx.Evaluation = dx.Evaluation(batch_size=64)


SMOKE = Settings(
    model=dx.models.UniversalTransformer(width=8, heads=2, hidden=8, steps=5, halt_bias=-1.0),
    data=dx.data.Copying(length=4, backwards=True, shift=4, examples=100),
    training=dx.Training(steps=20, batch_size=16, checkpoint_every=20),
    evaluation=dx.Evaluation(batch_size=8, repeats=1, tune=False),
)
