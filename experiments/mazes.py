"""Deep thinking on mazes: trained on small ones, iterated for longer on large ones.

    dynexit train experiments/mazes.py

Which places lie on the path from the start to the end? A recurrent convolutional network sees the
maze at every iteration and is trained to make progress from any state. A row exits once its answer
has settled.
Hardware: two CPU cores, 4 to 12 minutes of training and 2 to 7 to measure. Expect: with seeds 0, 1
and 2 99, 96 and 94 of 100 mazes of size 33 right at the operating point, after 89, 80 and 99 of 200
iterations on average; the best fixed depth of no more FLOPs 77, 75 and 76 (in the paper, where
networks are four times as wide, 97% of size 59). Another machine gives other networks. With
`--data.loops 0.3 --model.steps 100`, where the path must be searched for, 59, 65 and 61 of 100 are,
and depth follows its length."""

import dataclasses

import dynexit as dx


@dataclasses.dataclass(frozen=True)
class Settings(dx.Settings):
    """Deep thinking on mazes."""

    model: dx.models.DeepThinking = dx.models.DeepThinking(
        width=32, steps=200, blocks=1, every=4, walls=True
    )
    method: dx.methods.DeepThinking = dx.methods.DeepThinking(most=30)
    data: dx.data.Mazes = dx.data.Mazes(size=9, test_size=33, scale=1, examples=100)
    training: dx.Training = dx.Training(
        steps=2500, batch_size=32, learning_rate=2e-3, weight_decay=0.0, remat=False, log_every=50
    )
    calibration: dx.Calibration = dx.Calibration(accept_loss=0.002)
    evaluation: dx.Evaluation = dx.Evaluation(batch_size=16, repeats=3, timed_rows=48, tune=False)


SMOKE = Settings(
    model=dx.models.DeepThinking(width=8, steps=8, blocks=1, every=2, walls=True),
    method=dx.methods.DeepThinking(most=4),
    data=dx.data.Mazes(size=3, test_size=5, scale=1, examples=32),
    training=dx.Training(remat=False, steps=20, batch_size=16, checkpoint_every=20),
    evaluation=dx.Evaluation(batch_size=8, repeats=1, tune=False),
)
