"""Generated tasks: streams of random numbers by (seed, step), fixed sets, endless training.

Loads no JAX.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from dynexit.core.data import Source, Splits
from dynexit.data.own_rows import OwnRows
from dynexit.data.source import Batch, from_leaves

Draw: TypeAlias = Callable[[np.random.Generator, int], Batch]
"""`draw(random, size) -> batch`, leaves `[size, ...]`: "inputs", "labels" and "steps" (int32
`[size]`).
"""

# The last word of Philox's counter: streams that differ in it share no draw, whatever seed and
# step.
_TRAIN, _TRAIN_EXAMPLES, _CALIBRATION, _TEST = 1, 2, 3, 4


def generated(
    draw: Draw,
    examples: int,
    test_draw: Draw | None = None,
    calibration_draw: Draw | None = None,
    by_rows: bool = False,
) -> Splits:
    """The splits of a task that a function draws: endless training, fixed calibration and test.

    train.batch(seed, step, size) = draw(Philox(key=(seed, step)), size): nothing before it need be
    drawn, so a run resumes at any step. The fixed sets have streams of their own and are drawn at
    first use.

    Args:
      draw: `draw(random, size) -> batch`, a function of the numpy generator that it is given and of
        nothing else.
      examples: size of `calibration` and of `test`, and of `train.examples()`.
      test_draw, calibration_draw: draw the test and the calibration split, for extrapolation or to
        keep them apart from the training; by default `draw`.
      by_rows: whether `draw` treats each row alone and draws by the methods of `OwnRows` with the
        rows as first axis. One of several hosts then computes its own rows alone, with equal bits.

    Returns:
      Three sources; `train.size` is None. Batches hold every leaf of what is drawn, "steps" too,
      which training does not read.

    Raises:
      ValueError: `examples` below 1; from `batch` a size, step or seed out of range.

    Example:
      >>> def doubles(random, size):
      ...     inputs = random.integers(0, 10, size=(size, 1))
      ...     steps = np.ones(size, np.int32)
      ...     return {"inputs": inputs, "labels": 2 * inputs[:, 0], "steps": steps}
      >>> train, calibration, test = generated(doubles, examples=20)
      >>> batch = train.batch(0, 7, 4)
      >>> np.array_equal(batch["labels"], batch["inputs"][:, 0] * 2), test.size
      (True, 20)
    """
    at_least(1, examples=examples)
    fixed = _fixed("train", _TRAIN_EXAMPLES, draw, examples)
    batches = _RowBatches(draw) if by_rows else _Batches(draw)
    return Splits(
        Source("train", batches, fixed.examples, None),
        _fixed(
            "calibration",
            _CALIBRATION,
            draw if calibration_draw is None else calibration_draw,
            examples,
        ),
        _fixed("test", _TEST, draw if test_draw is None else test_draw, examples),
    )


class _Batches(NamedTuple):
    """`batch` of endless training."""

    draw: Draw

    def __call__(self, seed: int, step: int, size: int) -> Batch:
        return self.draw(_train_stream(seed, step, size), size)


class _RowBatches(_Batches):
    """The same, which also draws some rows of a batch alone."""

    def rows(self, seed: int, step: int, size: int, first: int, last: int) -> Batch:
        random: Any = OwnRows(_train_stream(seed, step, size), size, first, last)
        return self.draw(random, last - first)


def at_least(low: int, **values: int) -> None:
    """Refuses values below `low`.

    Raises:
      ValueError: names the first of `values` that is too small.

    Example:
      >>> at_least(1, length=3, examples=20)
    """
    for name, value in values.items():
        if value < low:
            raise ValueError(f"`{name}` must be at least {low}, got {value}.")


def ordered(name: str, pair: tuple[int, int], low: int, high: int | None, why: str = "") -> None:
    """Refuses a pair that is not low <= first <= last (<= high).

    Args:
      name: of the argument.
      pair: (first, last), both included.
      low, high: the bounds; no upper one where `high` is None.
      why: what the upper bound is, for the message, as in "length ".

    Raises:
      ValueError: names the argument, what came and what was wanted.

    Example:
      >>> ordered("lengths", (1, 40), 1, None)
    """
    first, last = pair
    if not (low <= first <= last and (high is None or last <= high)):
        upper = "" if high is None else f" <= {why}{high}"
        raise ValueError(
            f"`{name}` must be (low, high) with {low} <= low <= high{upper}, got {(first, last)}."
        )


def _train_stream(seed: int, step: int, size: int) -> np.random.Generator:
    at_least(0, seed=seed, step=step)
    at_least(1, size=size)
    return _stream(_TRAIN, seed, step)


def _stream(stream: int, seed: int, step: int) -> np.random.Generator:
    bits = np.random.Philox(
        key=np.array([seed, step], np.uint64), counter=np.array([0, 0, 0, stream], np.uint64)
    )
    return np.random.Generator(bits)


def _fixed(split: str, stream: int, draw: Draw, size: int) -> Source:
    """A set that is drawn once, at its first use."""

    @functools.cache
    def source() -> Source:
        return from_leaves(split, draw(_stream(stream, 0, 0), size))

    return Source(
        split,
        lambda seed, step, size: source().batch(seed, step, size),
        lambda: source().examples(),
        size,
    )
