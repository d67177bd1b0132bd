"""Raptor on scikit-learn's digits: the blocks of a trained vision transformer replaced by a few
that recur.

    dynexit train experiments/digits_vit.py --model.depth 8 --training.steps 300 --run runs/teacher
    dynexit train experiments/digits_raptor.py --model.teacher runs/teacher

The teacher's layers are cut into phases by the similarity of their states; one block is distilled
for each, told at which depth it is applied, and an image leaves where a layer no longer changes its
state.
Hardware: half of two busy CPU cores, 5 minutes and as much for the teacher. Expect: with seed 0 two
blocks in place of eight, as right as the teacher (98.4%) after all eight layers, and 98.2% at the
operating point, after 7.0 layers on average. Labels teach
the exit heads too: leaving everyone after five layers is as good (98.2%).
"""

import dataclasses

import dynexit as dx
from dynexit.core.settings import Calibration, Evaluation, Training, at_least


@dataclasses.dataclass(frozen=True)
class Model:
    """The student."""

    teacher: str = "runs/teacher"
    """run folder of a trained experiments/digits_vit.py; empty: a small network that nobody
    trained, to try the code
    """
    phases: int = 2
    """blocks that recur"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        return at_least(self, 1, "phases")


@dataclasses.dataclass(frozen=True)
class Method:
    """The distillation."""

    forcing: float = 0.25
    """fraction of the training over which the teacher's states are handed out less and less"""
    labels: float = 0.1
    """weight of the labels' loss beside the distance to the teacher's states"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        found = [] if 0 <= self.forcing <= 1 else [f"forcing must lie in 0..1, got {self.forcing}"]
        return found + at_least(self, 0.0, "labels")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run."""

    model: Model = Model()
    method: Method = Method()
    training: Training = Training(
        steps=200, batch_size=64, learning_rate=2e-3, checkpoint_every=100, remat=False
    )
    calibration: Calibration = Calibration(accept_loss=0.0, max_negative_flips=0.003)
    evaluation: Evaluation = Evaluation(batch_size=128)
    seed: int = 0
    """of weights, data order and augmentation"""


SMOKE = Settings(
    model=Model(teacher=""),
    training=Training(steps=10, batch_size=32, checkpoint_every=10, remat=False),
    evaluation=Evaluation(batch_size=8, repeats=1, timed_rows=16, tune=False),
)


def build(settings: Settings):
    """The experiment that the settings describe."""
    import jax

    taught, params, sizes = opened(settings.model.teacher) if settings.model.teacher else drawn()
    images = taught.prepare(taught.train.examples()["inputs"][:256])
    states = jax.jit(lambda params, images: dx.models.features(taught.model, params, images))(
        params, images
    )
    counts = dx.evaluation.phases(dx.evaluation.similarity(states), settings.model.phases).counts
    return taught._replace(
        model=dx.models.BlockRecurrent(counts=counts, **sizes).build((8, 8, 1), 10, teacher=params),
        method=dx.methods.raptor(
            taught.model, params, counts, settings.method.forcing, labels=settings.method.labels
        ),
    )


def opened(folder: str) -> tuple:
    """A trained teacher: its experiment, its parameters and the sizes of its network."""
    from pathlib import Path

    if not Path(folder).is_dir():
        words = f"dynexit train experiments/digits_vit.py --model.depth 8 --training.steps 300 --run {folder}"
        raise ValueError(f"model.teacher is {folder}, which is not there; train it with `{words}`")
    run = dx.runs.trained(folder)
    return (
        run.experiment,
        run.params,
        {name: getattr(run.settings.model, name) for name in ("patch", "stride", "width", "heads")},
    )


def drawn() -> tuple:
    """A teacher that was never trained, of four small blocks."""
    import functools

    import jax

    from dynexit.data.augment import to_float

    sizes = dict(patch=4, stride=4, width=8, heads=2)
    model = dx.models.Vit(depth=4, **sizes).build((8, 8, 1), 10)
    train, calibration, test = dx.data.digits()
    prepare = functools.partial(to_float, maximum=16.0, mean=0.305, std=0.376)
    made = dx.Experiment(
        model,
        dx.methods.confidence_exits(),
        train,
        calibration,
        test,
        augment=None,
        prepare=prepare,
        classes=tuple("0123456789"),
    )
    return made, jax.jit(model.init)(jax.random.key(0)), sizes
