"""PonderNet on its parity task: a recurrent cell that learns how many iterations to take.

    dynexit train experiments/parity_pondernet.py

Vectors of 8 entries in {-1, 0, 1}; the label is the parity of the number of +1. The prior has a
mean of about 1 / 0.3 iterations. `--data.train-nonzeros 6` trains on at most 6 non-zeros and tests
on 7 and 8; parity_fixed_depth.py trains the plain network.
Hardware: two CPU cores, 1 minute. Expect: test accuracy 100%, iteration 1 alone about 57%; in
training the Q-exit (q = 0.5) takes 8.3, 5.6, 4.2 and 3.5 iterations after 5, 10, 15 and 20 thousand
updates, and the operating point 2."""

import dataclasses

import dynexit as dx


@dataclasses.dataclass(frozen=True)
class Settings(dx.Settings):
    """PonderNet on parity."""

    model: dx.models.Gru = dx.models.Gru(width=64, steps=10)
    method: dx.methods.PonderNet = dx.methods.PonderNet(prior_rate=0.3, beta=0.01)
    data: dx.data.Parity = dx.data.Parity(length=8)
    training: dx.Training = dx.Training(
        steps=20_000,
        schedule="constant",
        warmup=0.0,
        weight_decay=0.0,
        checkpoint_every=5000,
        log_every=100,
    )


SMOKE = Settings(
    model=dx.models.Gru(width=8, steps=3),
    data=dx.data.Parity(length=4, examples=200),
    training=dx.Training(steps=30, batch_size=32, checkpoint_every=30),
    evaluation=dx.Evaluation(batch_size=8, repeats=1, tune=False),
)
