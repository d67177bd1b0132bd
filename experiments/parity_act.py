"""Adaptive computation time on PonderNet's parity task: the same recurrent cell, halted by a sum of
probabilities.

    dynexit train experiments/parity_act.py

The answer is the mean of the iterations' answers, weighted by the halting probabilities; each
iteration costs tau. `--data.train-nonzeros 5` tests on 6 to 8 non-zeros and trains on fewer.
Hardware: two CPU cores, a few minutes. Expect: measured up to update 14,900 on a busy core, test
accuracy 100%, 3.8 iterations of 10; in training 7.5, 6.2 and 3.8 iterations after 5, 10 and 15
thousand updates. With tau 0.001 accuracy is the same and all iterations are taken."""

import dataclasses

import parity_pondernet

import dynexit as dx


@dataclasses.dataclass(frozen=True)
class Settings(parity_pondernet.Settings):
    """Adaptive computation time on parity."""

    model: dx.models.Gru = dx.models.Gru(width=64, steps=10, halting="accumulated", halt_bias=-1.0)
    method: dx.methods.Act = dx.methods.Act(tau=0.01)


SMOKE = Settings(
    model=dx.models.Gru(width=8, steps=3, halting="accumulated", halt_bias=-1.0),
    data=dx.data.Parity(length=4, train_nonzeros=2, examples=200),
    training=parity_pondernet.SMOKE.training,
    evaluation=parity_pondernet.SMOKE.evaluation,
)
