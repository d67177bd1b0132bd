"""A continuous thought machine on parity: it looks at the bits tick by tick, and answers once it is
certain.

    dynexit train experiments/parity_ctm.py

At each place of a vector of 8 bits, is the number of ones so far odd? A vector counts as right
where all places are. There are 256 such vectors, so the test split repeats those of training.
Hardware: two CPU cores, a minute and half as much to measure. Expect: with seeds 0, 1 and 2 a
vector's most certain of 16 ticks is right for 100, 93 and 99.7% of the test split; on another
machine, which rounds otherwise, for 99.3, 63 and 100%. Exits by certainty take 14.3, 15.1 and 13.7
ticks with 99.7, 92.8 and 99.7% right; 14, 15 and 13 ticks for all rows have 94, 85 and 79%. No loss
asks for fewer ticks, and ticks of this size are not quicker with exits: 0.8 of the speed of full
depth."""

import dataclasses

import dynexit as dx


@dataclasses.dataclass(frozen=True)
class Settings(dx.Settings):
    """A continuous thought machine on parity."""

    model: dx.models.Ctm = dx.models.Ctm(
        width=96, ticks=16, out=48, answers="each", best_so_far=True
    )
    method: dx.methods.Ctm = dx.methods.Ctm()
    data: dx.data.PrefixSums = dx.data.PrefixSums(length=8, examples=2000)
    training: dx.Training = dx.Training(
        steps=1500,
        batch_size=64,
        learning_rate=3e-3,
        warmup=0.05,
        weight_decay=0.0,
        remat=False,
        log_every=25,
    )
    evaluation: dx.Evaluation = dx.Evaluation(batch_size=200, repeats=3, tune=False)


SMOKE = Settings(
    model=dx.models.Ctm(
        width=8, ticks=3, memory=2, hidden=2, features=4, heads=1, action=4, out=4, answers="each"
    ),
    data=dx.data.PrefixSums(length=4, examples=64),
    training=dx.Training(remat=False, steps=8, batch_size=16, checkpoint_every=8),
    evaluation=dx.Evaluation(batch_size=8, repeats=1, tune=False),
)
