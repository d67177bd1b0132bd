"""The network of prefix_sums.py, trained with a random number of iterations as recurrent depth is.

    dynexit train experiments/prefix_sums_recurrent.py

Hardware: two CPU cores, 3 minutes of training a seed. Expect: 13 iterations on average in training;
0% of 512-bit strings right after 64 iterations, 100% after 240 and after 400, with three seeds; the
table is in docs/benchmarks.md."""

import dataclasses

import prefix_sums

import dynexit as dx


@dataclasses.dataclass(frozen=True)
class Settings(prefix_sums.Settings):
    """Recurrent depth on prefix sums."""

    method: dx.methods.RecurrentDepth = dx.methods.RecurrentDepth(
        mean=12.0, truncate=8, noise=0.0, score="exact"
    )


SMOKE = Settings(
    model=prefix_sums.SMOKE.model,
    method=dx.methods.RecurrentDepth(mean=2.0, truncate=2, noise=0.0, score="exact"),
    data=prefix_sums.SMOKE.data,
    training=prefix_sums.SMOKE.training,
    evaluation=prefix_sums.SMOKE.evaluation,
)
