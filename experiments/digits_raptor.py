"""Raptor on scikit-learn's digits: the blocks of a trained vision transformer are replaced by a few
recurrent ones.

    dynexit train experiments/digits_vit.py --model.depth 8 --training.steps 300 --run runs/teacher
    dynexit train experiments/digits_raptor.py --model.teacher runs/teacher

The teacher's blocks are cut into phases by the similarity of their states; one block is distilled
for each, which reads the depth at which it is applied. An image exits where a block no longer
changes its state.
Hardware: half of two busy CPU cores, 5 minutes and as much for the teacher. Expect: with seed 0 two
blocks in place of eight, as accurate as the teacher (98.4%) after all eight applications, and 98.2%
at the operating point, after 7.0 on average. Labels train the exit heads too: an exit of all rows
after five is as good (98.2%)."""

import dataclasses
from pathlib import Path

import digits_vit

import dynexit as dx


@dataclasses.dataclass(frozen=True)
class Student:
    """The recurrent blocks that are distilled."""

    teacher: str = "runs/teacher"
    """run folder of a trained digits_vit.py; empty for a small untrained network"""
    phases: int = 2
    """recurrent blocks"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        return [] if self.phases >= 1 else [f"phases must be at least 1, got {self.phases}"]


@dataclasses.dataclass(frozen=True)
class Settings(dx.Settings):
    """Raptor on digits."""

    model: Student = Student()
    method: dx.methods.Raptor = dx.methods.Raptor(labels=0.1)
    training: dx.Training = dx.Training(
        steps=200, batch_size=64, learning_rate=2e-3, checkpoint_every=100, remat=False
    )
    calibration: dx.Calibration = dx.Calibration(accept_loss=0.0, max_negative_flips=0.003)

    def build(self) -> "dx.Experiment":
        """The experiment: the teacher is opened, and its phases are measured."""
        import jax

        taught, params, vit = teacher(self.model.teacher)
        images = taught.prepare(taught.train.examples()["inputs"][:256])
        states = jax.jit(lambda p, x: dx.models.features(taught.model, p, x))(params, images)
        counts = dx.evaluation.phases(dx.evaluation.similarity(states), self.model.phases).counts
        student = dx.models.BlockRecurrent(counts, vit.patch, vit.stride, vit.width, vit.heads)
        return taught._replace(
            model=student.build((8, 8, 1), 10, teacher=params),
            method=self.method.build(taught.model, params, counts),
        )


SMOKE = Settings(
    model=Student(teacher=""),
    training=dx.Training(steps=10, batch_size=32, checkpoint_every=10, remat=False),
    evaluation=dx.Evaluation(batch_size=8, repeats=1, timed_rows=16, tune=False),
)


def teacher(folder: str) -> tuple:
    """A trained teacher: its experiment, parameters and model settings."""
    import jax

    if not folder:
        settings = dataclasses.replace(digits_vit.SMOKE, data=dx.data.Digits(shift=0))
        settings = dataclasses.replace(settings, model=dataclasses.replace(settings.model, depth=4))
        untrained = settings.build()
        return untrained, jax.jit(untrained.model.init)(jax.random.key(0)), settings.model
    if not Path(folder).is_dir():
        command = f"dynexit train experiments/digits_vit.py --model.depth 8 --run {folder}"
        raise ValueError(f"model.teacher is {folder}, which does not exist; `{command}` trains it")
    run = dx.runs.trained(folder)
    return run.experiment, run.params, run.settings.model
