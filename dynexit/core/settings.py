"""Settings: frozen dataclasses, read and validated before JAX is loaded.

Models, methods and data sets are frozen dataclasses too (`dx.models.Vit(depth=4)`): their fields
are settings and their `build` is the constructor. An experiment file subclasses `Settings` with its
own three. Each class may have a method `validate() -> list[str]` that returns one sentence for
every value that is out of range or clashes; `validate` below collects them all.
"""

import dataclasses
import enum
import math
import numbers
import pathlib
import types
import typing
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from dynexit.core.types import Experiment

MOST_STEPS = 2**31 - 1  # the step is an int32
MOST_ROWS = 2**20
MOST_BLOCKS = 10_000  # a network's shapes are known block by block
MOST_SEED = 2**32 - 1  # jax.random.key takes the last 32 bits of a larger one


@dataclasses.dataclass(frozen=True)
class Training:
    """How the network is trained."""

    steps: int = 1000
    """optimizer steps"""
    batch_size: int = 128
    """examples per step, over all devices"""
    learning_rate: float = 1e-3
    """peak of the schedule"""
    warmup: float = 0.1
    """fraction of the steps with a linear rise from 0"""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """what follows the warm-up, down to 0"""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd has Nesterov momentum 0.9"""
    weight_decay: float = 0.05
    """decoupled; not applied to biases, norms and embeddings"""
    clip: float = 1.0
    """global norm of the gradient; 0 for no clipping"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """compute type; parameters and optimizer stay float32"""
    remat: bool = True
    """recompute a block's inner values in the backward pass: less memory, and on a CPU less time"""
    checkpoint_every: int = 500
    """steps between checkpoints; the last step is always kept"""
    keep: int = 3
    """checkpoints kept for resuming; the best one is kept beside them"""
    log_every: int = 20
    """steps between records in metrics.jsonl"""
    eval_every: int | None = None
    """steps between evaluations of every exit on the calibration split, by which the best
    checkpoint is chosen; the last step is always evaluated. None: a tenth of the steps; 0: never
    """
    eval_rows: int | None = 1024
    """rows of the calibration split in these evaluations, evenly spread; None: all"""
    wandb: Literal["auto", "online", "offline", "off"] = "off"
    """mirror of metrics.jsonl; auto is online with a key and offline without"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        return [
            *at_least(self, 1, "steps", "batch_size", "checkpoint_every", "keep", "log_every"),
            *at_most(self, MOST_STEPS, "steps"),
            *at_most(self, MOST_ROWS, "batch_size"),
            *between(self, 0.0, 1.0, "warmup"),
            *(at_least(self, 0, "eval_every") if self.eval_every is not None else []),
            *(at_least(self, 1, "eval_rows") if self.eval_rows is not None else []),
            *at_least(self, 0.0, "weight_decay", "clip"),
            *(
                []
                if self.learning_rate > 0
                else [f"learning_rate must be above 0, got {self.learning_rate}"]
            ),
        ]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How the operating point is chosen, from the calibration split alone.

    It is chosen by `risk` if given, else by `budget` if given, else by `accept_loss`.
    """

    accept_loss: float | None = 0.005
    """accuracy that may be lost against full depth, as a fraction: the cheapest point within it is
    taken
    """
    budget: float | None = None
    """fraction of full-depth FLOPs that may be spent: the most accurate point within it is taken
    """
    max_negative_flips: float | None = None
    """with accept_loss: fraction of rows that may turn from right at full depth to wrong, gains
    elsewhere not counted; None: any
    """
    risk: float | None = None
    """accuracy that new rows may lose, gains elsewhere not counted, with probability 1 - delta over
    the calibration rows (learn then test)
    """
    delta: float = 0.1
    """of risk"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        found = []
        if self.accept_loss is not None:
            found += between(self, 0.0, 1.0, "accept_loss")
        if self.max_negative_flips is not None:
            found += between(self, 0.0, 1.0, "max_negative_flips")
        for name in ("budget", "risk"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                found.append(f"{name} must lie above 0 and up to 1, got {value}")
        if not 0 < self.delta < 1:
            found.append(f"delta must lie between 0 and 1, got {self.delta}")
        if self.budget is not None and self.risk is not None:
            found.append(
                f"budget and risk: only one may be given, got {self.budget} and {self.risk}"
            )
        if self.accept_loss is None and self.budget is None and self.risk is None:
            found.append("accept_loss, budget and risk: one of them must be given, got none")
        return found


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How the test split is measured."""

    batch_size: int = 128
    """rows per call of the compiled program"""
    repeats: int = 7
    """interleaved timings of each program; the median is reported"""
    timed_rows: int | None = None
    """rows of the test split that are timed, in whole batches evenly spread; None: all, or as many
    as 256 MiB of inputs. Answers are always of the whole split
    """
    tune: bool = True
    """measure what tiles cost and choose their sizes before timing (`dx.tune`)"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        timed = at_least(self, 1, "timed_rows") if self.timed_rows is not None else []
        sizes = at_least(self, 1, "batch_size", "repeats") + at_most(self, MOST_ROWS, "batch_size")
        return sizes + timed


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How devices share the work of training; the product of the three is their number."""

    data: int | None = None
    """groups of devices that split the rows of a batch and hold copies of the parameters; None: all
    that the other axes leave
    """
    fsdp: int = 1
    """devices that split the rows and also the parameters and optimizer state"""
    model: int = 1
    """devices that split the heads and inner widths of every layer (tensor parallelism)"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        data = at_least(self, 1, "data") if self.data is not None else []
        return data + at_least(self, 1, "fsdp", "model")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run. An experiment adds `model`, `method` and `data`.

    `build` works for every experiment whose three parts are constructors of dynexit, or classes
    with the same methods: `data.build() -> Dataset`, `model.build(inputs, classes) -> Model`,
    `method.build() -> Method`.

    Example:
      >>> import dynexit as dx
      >>> @dataclasses.dataclass(frozen=True)
      ... class Digits(dx.Settings):
      ...     model: dx.models.Vit = dx.models.Vit(patch=4, width=8, depth=2, heads=2)
      ...     method: dx.methods.ConfidenceExits = dx.methods.ConfidenceExits()
      ...     data: dx.data.Digits = dx.data.Digits()
      >>> Digits(seed=1).build().model.depth
      2
    """

    training: Training = Training()
    calibration: Calibration = Calibration()
    evaluation: Evaluation = Evaluation()
    mesh: Mesh = Mesh()
    seed: int = 0
    """of weights, data order and augmentation"""

    def build(self) -> "Experiment":
        """The experiment that the settings describe; loads JAX and the data."""
        from dynexit.core.types import Experiment

        parts: Any = self
        data = parts.data.build()
        model = parts.model.build(data.inputs, len(data.classes))
        splits = data.train, data.calibration, data.test
        return Experiment(
            model, parts.method.build(), *splits, data.augment, data.prepare, data.classes
        )

    def validate(self) -> list[str]:
        """What does not fit together, one sentence each."""
        parts: Any = self
        model, method, data = (getattr(parts, n, None) for n in ("model", "method", "data"))
        if any(validate(part) for part in (model, method, data) if dataclasses.is_dataclass(part)):
            return []  # reported on their own; what follows needs values in range
        found = []
        if hasattr(model, "fits") and hasattr(data, "inputs"):
            misfits = parts.model.fits(parts.data.inputs, len(parts.data.classes))
            found += [f"model.{sentence}" for sentence in misfits]
        if hasattr(method, "suits"):
            found += [f"method.{sentence}" for sentence in parts.method.suits(model)]
        return found


def refuse_invalid(settings: Any) -> None:
    """Raises what `validate` finds.

    Raises:
      ValueError: values out of range, all of them, with the class and the fields named.

    Example:
      >>> refuse_invalid(Training(steps=0, keep=0))
      Traceback (most recent call last):
        ...
      ValueError: `Training`: steps must be at least 1, got 0; keep must be at least 1, got 0
    """
    if found := validate(settings):
        raise ValueError(f"`{type(settings).__name__}`: {'; '.join(found)}")


def refuse_unfit(settings: Any, inputs: Any, classes: int) -> None:
    """Raises what a model's `fits(inputs, classes)` finds.

    Raises:
      ValueError: the model does not fit the inputs, or there are fewer than 2 classes: one logit
        is no distribution, and its probability would be 1 at every exit.
    """
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
        raise ValueError(f"`classes` must be an integer of at least 2, got {classes!r}")
    if found := settings.fits(inputs, classes):
        raise ValueError(f"`{type(settings).__name__}`: {'; '.join(found)}")


def at_least(settings: Any, low: float, *names: str) -> list[str]:
    """Sentences for the fields `names` that are below `low`."""
    return [
        f"{n} must be at least {low}, got {getattr(settings, n)}"
        for n in names
        if not getattr(settings, n) >= low
    ]


def at_most(settings: Any, high: float, *names: str) -> list[str]:
    """Sentences for the fields `names` that are above `high`."""
    return [
        f"{n} must be at most {high}, got {getattr(settings, n)}"
        for n in names
        if not getattr(settings, n) <= high
    ]


def between(settings: Any, low: float, high: float, *names: str) -> list[str]:
    """Sentences for the fields `names` that lie outside low..high."""
    return [
        f"{n} must lie in {low}..{high}, got {getattr(settings, n)}"
        for n in names
        if not low <= getattr(settings, n) <= high
    ]


def validate(settings: Any, path: str = "") -> list[str]:
    """All errors in a tree of settings, one sentence each.

    It checks types, choices, finite numbers, that `seed` is a uint32, and each class's `validate`.

    Args:
      settings: an instance of a dataclass, possibly with dataclasses among its fields.
      path: put before each field's name.

    Returns:
      One sentence each, with the dotted path of the field in front.

    Example:
      >>> validate(Training(learning_rate=float("inf"), steps=0))
      ['learning_rate must be a finite number, got inf']
    """
    found, hints = [], typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, hint = getattr(settings, field.name), hints[field.name]
        if not _has_type(value, hint):
            found.append(f"{path}{field.name} must be {in_words(hint)}, got {value!r}")
        elif not _is_finite(value):
            found.append(f"{path}{field.name} must be a finite number, got {value}")
    if not found:  # the ranges of values that are of another type cannot be checked
        if not path:
            found += valid_seed(getattr(settings, "seed", 0))
        found += [f"{path}{sentence}" for sentence in getattr(settings, "validate", list)()]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            found += validate(value, f"{path}{field.name}.")
    return found


def valid_seed(seed: Any) -> list[str]:
    """What is wrong with a seed, in at most one sentence.

    Example:
      >>> valid_seed(-1), valid_seed(3)
      (['seed must lie in 0..4294967295, got -1'], [])
    """
    if _has_type(seed, int) and 0 <= seed <= MOST_SEED:
        return []
    return [f"seed must lie in 0..{MOST_SEED}, got {seed!r}"]


def in_words(hint: Any) -> str:
    """A type in words.

    Example:
      >>> in_words(int), in_words(float | None), in_words(Literal["a", "b"])
      ('an integer', 'a number or None', 'one of a, b')
      >>> in_words(tuple[int, ...]), in_words(tuple[int, int])
      ('a tuple of int', 'a tuple of 2')
    """
    known = {int: "an integer", float: "a number", bool: "True or False", str: "a string"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(in_words, arguments))
    if origin is tuple:
        if Ellipsis in arguments:
            return f"a tuple of {getattr(arguments[0], '__name__', arguments[0])}"
        return f"a tuple of {len(arguments)}"
    if hint is type(None):
        return "None"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return f"one of {', '.join(hint.__members__)}"
    base = origin or hint
    return known.get(base, f"a {getattr(base, '__name__', base)}")


def _has_type(value: Any, hint: Any) -> bool:
    """Whether a value has a field's type; types that are not plain are not checked."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(_has_type(value, each) for each in arguments)
    if hint is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    if origin is tuple and isinstance(value, tuple):
        each = (arguments[0],) * len(value) if Ellipsis in arguments else arguments
        return len(each) == len(value) and all(map(_has_type, value, each))
    base = origin or hint
    if base in (bool, str, tuple, type(None)):
        return isinstance(value, base)
    if isinstance(base, type) and issubclass(base, (enum.Enum, pathlib.PurePath)):
        return isinstance(value, base)
    return True


def _is_finite(value: Any) -> bool:
    """Whether a number, or every number of a tuple, is finite."""
    if isinstance(value, tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, numbers.Real) or math.isfinite(value)
