"""A neural ODE on scikit-learn's digits: every image takes as many solver steps as its own
trajectory needs.

    pip install -e '.[solvers]' && dynexit train experiments/digits_ode.py

Steps of diffrax's Tsit5, whose length each row chooses for itself by the solver's error estimate:
depth is a tolerance.
Hardware: half of two busy CPU cores, 2 minutes. Expect: with seed 0 94.0% after all 16 steps, 93.8%
at the operating point, there 3.7 steps on average and 2.3 times faster than 16. All rows have
arrived after 4 to 6 steps, 4.02 on average, and what full depth
does then is idle: most of the gain is stopping on arrival, leaving before it saves a tenth. 450
test digits: one is 0.2 points.
"""

import dataclasses

import dynexit as dx
from dynexit.core.settings import Calibration, Evaluation, Training, at_least, between


@dataclasses.dataclass(frozen=True)
class Model:
    """The vector field and its solver."""

    width: int = 64
    """features that are moved"""
    hidden: int = 64
    """units of the field"""
    steps: int = 16
    """solver steps at most, rejected ones among them"""
    tolerance: float = 1e-3
    """relative error of a step; the absolute one is a thousandth of it"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        found = [] if self.tolerance > 0 else [f"tolerance must be above 0, got {self.tolerance}"]
        return found + at_least(self, 1, "width", "hidden", "steps")


@dataclasses.dataclass(frozen=True)
class Method:
    """The objective."""

    early: float = 0.2
    """weight of the answers on the way"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        return between(self, 0.0, 1.0, "early")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run."""

    model: Model = Model()
    method: Method = Method()
    training: Training = Training(
        steps=600, batch_size=64, learning_rate=3e-3, checkpoint_every=300, remat=False
    )
    calibration: Calibration = Calibration(accept_loss=0.0, max_negative_flips=0.003)
    evaluation: Evaluation = Evaluation(batch_size=128)
    seed: int = 0
    """of weights, data order and augmentation"""


SMOKE = Settings(
    model=Model(width=8, hidden=8, steps=4, tolerance=0.1),
    training=Training(steps=10, batch_size=32, checkpoint_every=10, remat=False),
    evaluation=Evaluation(batch_size=8, repeats=1, timed_rows=16, tune=False),
)


def build(settings: Settings):
    """The experiment that the settings describe."""
    import functools

    from dynexit.data.augment import random_crop, to_float

    m = settings.model
    train, calibration, test = dx.data.digits()
    solver = dx.solvers.Solver(rtol=m.tolerance, atol=m.tolerance / 1000)
    return dx.Experiment(
        model=dx.models.NeuralOde(width=m.width, hidden=m.hidden, steps=m.steps).build(
            (8, 8, 1), 10, solver=solver
        ),
        method=dx.methods.neural_ode(settings.method.early),
        train=train,
        calibration=calibration,
        test=test,
        augment=functools.partial(random_crop, padding=1),
        prepare=functools.partial(to_float, maximum=16.0, mean=0.305, std=0.376),
        classes=tuple("0123456789"),
    )
