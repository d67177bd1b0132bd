"""The plain network of parity_pondernet.py: the last iteration is trained, and all are run.

    dynexit train experiments/parity_fixed_depth.py

Hardware: two CPU cores, 1 minute. Expect: the row of the plain network in docs/benchmarks.md, with
`--data.train-nonzeros 6` as there."""

import dataclasses

import parity_pondernet

import dynexit as dx


@dataclasses.dataclass(frozen=True)
class Settings(parity_pondernet.Settings):
    """Fixed depth on parity."""

    method: dx.methods.FixedDepth = dx.methods.FixedDepth()


SMOKE = Settings(
    model=parity_pondernet.SMOKE.model,
    data=parity_pondernet.SMOKE.data,
    training=parity_pondernet.SMOKE.training,
    evaluation=parity_pondernet.SMOKE.evaluation,
)
