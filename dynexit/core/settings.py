"""Settings that every experiment shares: plain frozen dataclasses, so that they are read and
refused before JAX is loaded.

An experiment file makes its own `Settings` dataclass out of these and of its own (`model`, `data`);
each class may have a method `validate() -> list[str]` that names what is out of range or clashes, and
`validate` below gathers them all.
"""

import dataclasses
import typing
from typing import Literal


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
    """checkpoints kept"""
    log_every: int = 20
    """steps between records in metrics.jsonl"""
    wandb: Literal["auto", "online", "offline", "off"] = "off"
    """mirror of metrics.jsonl; auto is online with a key and offline without"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        return [
            *at_least(self, 1, "steps", "batch_size", "checkpoint_every", "keep", "log_every"),
            *between(self, 0.0, 1.0, "warmup"),
            *at_least(self, 0.0, "weight_decay", "clip"),
            *(
                []
                if self.learning_rate > 0
                else [f"learning_rate must be above 0, got {self.learning_rate}"]
            ),
        ]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How the operating point is chosen, from the calibration split alone."""

    accept_loss: float | None = 0.005
    """accuracy that may be lost against full depth, as a fraction: the cheapest point within it is
    taken
    """
    budget: float | None = None
    """fraction of full-depth FLOPs that may be spent: the most accurate point within it is taken;
    replaces accept_loss
    """
    max_negative_flips: float | None = None
    """with accept_loss: fraction of rows that may turn from right at full depth to wrong, gains
    elsewhere not counted; None: any
    """

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        found = []
        if self.accept_loss is not None:
            found += between(self, 0.0, 1.0, "accept_loss")
        if self.max_negative_flips is not None:
            found += between(self, 0.0, 1.0, "max_negative_flips")
        if self.budget is not None:
            found += (
                []
                if 0 < self.budget <= 1
                else [f"budget must lie above 0 and up to 1, got {self.budget}"]
            )
        if self.accept_loss is None and self.budget is None:
            found.append("accept_loss and budget: one of them must be given, got neither")
        return found


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How the test split is measured."""

    batch_size: int = 128
    """rows per call of the compiled program"""
    repeats: int = 7
    """interleaved timings of each program; the median is reported"""
    timed_rows: int | None = None
    """rows of the test split that are timed, in whole batches evenly spread; None: all. Answers are
    always of the whole split
    """
    tune: bool = True
    """measure what tiles cost and choose their sizes before timing (`dx.tune`)"""

    def validate(self) -> list[str]:
        """Out-of-range values, one sentence each."""
        timed = at_least(self, 1, "timed_rows") if self.timed_rows is not None else []
        return at_least(self, 1, "batch_size", "repeats") + timed


def at_least(settings, low: float, *names: str) -> list[str]:
    """Sentences for the fields `names` that are below `low`."""
    return [
        f"{n} must be at least {low}, got {getattr(settings, n)}"
        for n in names
        if not getattr(settings, n) >= low
    ]


def between(settings, low: float, high: float, *names: str) -> list[str]:
    """Sentences for the fields `names` that lie outside low..high."""
    return [
        f"{n} must lie in {low}..{high}, got {getattr(settings, n)}"
        for n in names
        if not low <= getattr(settings, n) <= high
    ]


def validate(settings, path: str = "") -> list[str]:
    """All faults of a tree of settings, each with its dotted path in front: unknown choices, and
    what is out of range.
    """
    found, hints = [], typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, allowed = getattr(settings, field.name), typing.get_args(hints[field.name])
        if typing.get_origin(hints[field.name]) is Literal and value not in allowed:
            found.append(
                f"{path}{field.name} must be one of {', '.join(map(str, allowed))}, got {value!r}"
            )
    found += [f"{path}{sentence}" for sentence in getattr(settings, "faults", list)()]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            found += validate(value, f"{path}{field.name}.")
    return found
