"""A neural ODE on scikit-learn's digits: every image takes as many solver steps as its own
trajectory needs.

    pip install -e '.[solvers]' && dynexit train experiments/digits_ode.py

The steps are those of diffrax's Tsit5. Each row chooses their length by the solver's error
estimate, so depth is a tolerance.
Hardware: half of two busy CPU cores, 2 minutes. Expect: with seed 0 94.0% after all 16 steps, 93.8%
at the operating point, there 3.7 steps on average and 2.3 times faster than 16. All rows arrive
after 4 to 6 steps, 4.02 on average, and full depth is idle from then on: most of the gain is the
exit on arrival; earlier exits save a tenth."""

import dataclasses

import dynexit as dx


@dataclasses.dataclass(frozen=True)
class Settings(dx.Settings):
    """A neural ODE on digits."""

    model: dx.models.NeuralOde = dx.models.NeuralOde(width=64, hidden=64, steps=16, tolerance=1e-3)
    method: dx.methods.NeuralOde = dx.methods.NeuralOde(early=0.2)
    data: dx.data.Digits = dx.data.Digits(shift_calibration=False)
    training: dx.Training = dx.Training(
        steps=600, batch_size=64, learning_rate=3e-3, checkpoint_every=300, remat=False
    )
    calibration: dx.Calibration = dx.Calibration(accept_loss=0.0, max_negative_flips=0.003)


SMOKE = Settings(
    model=dx.models.NeuralOde(width=8, hidden=8, steps=4, tolerance=0.1),
    training=dx.Training(steps=10, batch_size=32, checkpoint_every=10, remat=False),
    evaluation=dx.Evaluation(batch_size=8, repeats=1, timed_rows=16, tune=False),
)
