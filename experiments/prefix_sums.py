"""Deep thinking on prefix sums: trained on 32 bits, iterated for longer on 512.

    dynexit train experiments/prefix_sums.py

At each place, is the number of ones so far odd? A recurrent convolutional network sees the input at
every iteration and is trained to make progress from any state. A row exits once its answer has
settled. prefix_sums_recurrent.py trains the same network as recurrent depth does (Huginn).
Hardware: two CPU cores, 4 minutes and 1 more to measure. Expect: with each of the seeds 0, 1 and 2
all 200 strings of 512 bits right, after 193, 187 and 196 iterations of 400 on average (the best
fixed depth of no more FLOPs: 99.5%, 100%, 100%)."""

import dataclasses

import dynexit as dx


@dataclasses.dataclass(frozen=True)
class Settings(dx.Settings):
    """Deep thinking on prefix sums."""

    model: dx.models.DeepThinking = dx.models.DeepThinking(width=32, steps=400, every=8)
    method: dx.methods.DeepThinking = dx.methods.DeepThinking(most=32)
    data: dx.data.PrefixSums = dx.data.PrefixSums(length=32, test_length=512, examples=200)
    training: dx.Training = dx.Training(
        steps=2000,
        batch_size=64,
        learning_rate=2e-3,
        weight_decay=0.0,
        remat=False,
        log_every=50,
    )
    calibration: dx.Calibration = dx.Calibration(accept_loss=0.002)
    evaluation: dx.Evaluation = dx.Evaluation(batch_size=16, repeats=3, timed_rows=32, tune=False)


SMOKE = Settings(
    model=dx.models.DeepThinking(width=8, steps=8, every=2),
    method=dx.methods.DeepThinking(most=4),
    data=dx.data.PrefixSums(length=8, test_length=12, examples=64),
    training=dx.Training(remat=False, steps=20, batch_size=16, checkpoint_every=20),
    evaluation=dx.Evaluation(batch_size=8, repeats=1, tune=False),
)
