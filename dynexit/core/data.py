"""What a data set is: its splits and what one example looks like. Loads no JAX."""

from collections.abc import Callable
from typing import Any, NamedTuple

SPLITS = ("train", "calibration", "test")


class Source(NamedTuple):
    """One split of a data set on the host, in numpy batches.

    A batch is `{"inputs": [b, ...], "labels": int32 [b]}`.

    Inputs may be a dict of arrays and labels may be `[b, ...]`. Other leaves stay on the host, for
    example ids of the rows, or "steps" of generated tasks, int32 `[b]`: how many sequential steps
    the example needs.

    Attributes:
      split: "train", "calibration" or "test".
      batch: `batch(seed, step, size) -> dict`, a pure function of its arguments: shuffled epochs
        without replacement, one after the other; a generated task draws new examples.
      examples: `examples() -> dict`, every example in a fixed order (for a generated task, a fixed
        evaluation set).
      size: number of examples per epoch (`examples()` has as many), or None where `batch` draws
        without end.
    """

    split: str
    batch: Callable[[int, int, int], dict[str, Any]]
    examples: Callable[[], dict[str, Any]]
    size: int | None


class Splits(NamedTuple):
    """The three disjoint splits of a data set; unpacks as `train, calibration, test`."""

    train: Source
    calibration: Source
    test: Source


class Tokens(NamedTuple):
    """What one example looks like where it is a sequence of token ids.

    Attributes:
      vocabulary: number of tokens; ids are 0..vocabulary-1.
      length: tokens of an example, or None where it varies.
    """

    vocabulary: int
    length: int | None = None


class Dataset(NamedTuple):
    """The splits of a data set and what a model needs to know of them.

    Attributes:
      train, calibration, test: the three splits, disjoint.
      inputs: shape of one example as the model takes it, e.g. `(8, 8, 1)`, or `Tokens`.
      classes: names of the classes.
      augment, prepare: see `Experiment`.
    """

    train: Source
    calibration: Source
    test: Source
    inputs: tuple[int, ...] | Tokens
    classes: tuple[str, ...]
    augment: Callable[[Any, Any], Any] | None = None
    prepare: Callable[[Any], Any] | None = None
