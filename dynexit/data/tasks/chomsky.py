"""The Chomsky suite: fifteen tasks on strings, grouped by the memory they need.

Training strings are short, test strings long.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from dynexit.core.data import Dataset, Splits
from dynexit.core.labels import IGNORED
from dynexit.core.settings import refuse_invalid
from dynexit.data.source import Batch
from dynexit.data.tasks import chomsky_arithmetic as arithmetic
from dynexit.data.tasks import chomsky_strings as strings
from dynexit.data.tasks.procedural import generated, ordered
from dynexit.data.tasks.settings_sequences import CHOMSKY_SIZES, Chomsky

Draw: TypeAlias = Callable[[np.random.Generator, int, int], strings.Drawn]


class Task(NamedTuple):
    """One task of the suite.

    Attributes:
      draw: `draw(random, size, length) -> (inputs [b, l], targets [b, T])`, int32; l is `length`,
        but for `modular_arithmetic` one less where that is even.
      vocabulary: V, input tokens are 0..V-1.
      classes: C, target tokens are 0..C-1.
      output_length: T, given `length`.
      level: "R" regular, "DCF" deterministic context-free, "CS" context-sensitive.
      chance: accuracy of a guess.
      masked: whether targets count only up to the first 2, included.
    """

    draw: Draw
    vocabulary: int
    classes: int
    output_length: Callable[[int], int]
    level: str
    chance: float
    masked: bool


def _one(length: int) -> int:
    return 1


def _same(length: int) -> int:
    return length


def _one_more(length: int) -> int:
    return length + 1


def _task(name: str, draw: Draw, output_length: Callable[[int], int], *rest: Any) -> Task:
    return Task(draw, *CHOMSKY_SIZES[name], output_length, *rest)


TASKS: dict[str, Task] = {
    name: _task(name, *row)
    for name, row in {
        "even_pairs": (strings.even_pairs, _one, "R", 0.5, False),
        "parity_check": (strings.parity_check, _one, "R", 0.5, False),
        "cycle_navigation": (strings.cycle_navigation, _one, "R", 0.2, False),
        "modular_arithmetic": (arithmetic.modular_arithmetic, _one, "R", 0.2, False),
        "stack_manipulation": (strings.stack_manipulation, _one_more, "DCF", 0.5, True),
        "reverse_string": (strings.reverse_string, _same, "DCF", 0.5, False),
        "modular_arithmetic_brackets": (
            arithmetic.modular_arithmetic_brackets,
            _one,
            "DCF",
            0.2,
            False,
        ),
        "solve_equation": (arithmetic.solve_equation, _one, "DCF", 0.2, False),
        "duplicate_string": (strings.duplicate_string, lambda n: 2 * n, "CS", 0.5, False),
        "missing_duplicate": (strings.missing_duplicate, _one, "CS", 0.5, False),
        "odds_first": (strings.odds_first, _same, "CS", 0.5, False),
        "binary_addition": (arithmetic.binary_addition, _one_more, "CS", 0.5, True),
        "binary_multiplication": (arithmetic.binary_multiplication, _same, "CS", 0.5, True),
        "compute_sqrt": (arithmetic.compute_sqrt, lambda n: (n + 1) // 2, "CS", 0.5, False),
        "bucket_sort": (strings.bucket_sort, _same, "CS", 0.2, False),
    }.items()
}
"""The suite, in the order of its paper; loop over it to report them all, and give `chomsky` the
task itself.
"""


# Tasks whose rows are drawn as arrays; the others draw row by row, as many numbers as a row needs.
BY_ROWS = (
    strings.even_pairs,
    strings.parity_check,
    strings.cycle_navigation,
    strings.reverse_string,
    strings.stack_manipulation,
    strings.duplicate_string,
    strings.missing_duplicate,
    strings.odds_first,
    strings.bucket_sort,
    arithmetic.modular_arithmetic,
)


def chomsky(
    task: Task,
    lengths: tuple[int, int] = (1, 40),
    test_lengths: tuple[int, int] = (41, 500),
    examples: int = 2000,
) -> Splits:
    """A task of the suite in the layout of its protocol.

    The string is followed by T empty tokens, at which the answer is read.

    A training batch has strings of one length l ~ U{low..high}, drawn from (seed, step) like all
    else. The fixed sets have all lengths in turn, from low to high, as many of each as `examples`
    allows. All batches of a split have the same shape.

    Args:
      task: of `TASKS`, or your own.
      lengths: (low, high) in training and calibration, both included.
      test_lengths: (low, high) in the test split.
      examples: size of `calibration` and of `test`, and of `train.examples()`.

    Returns:
      Three sources; W = high + T(high). inputs int32 `[b, W]`: the tokens, then T times V (empty),
      then V + 1 (padding); `jax.nn.one_hot` with V + 1 classes, left to the caller, makes padding
      all zeros. labels int32 `[b, W]`: the targets at the places of the empty tokens, IGNORED (-1)
      at all others, and in masked tasks after the first 2. steps int32 `[b]`: l, the tokens that
      one pass reads one at a time.

    Raises:
      TypeError: `task` is no `Task`.
      ValueError: a range that is empty or begins below 1, `examples` below 1.

    Example:
      >>> batch = chomsky(TASKS["reverse_string"], lengths=(3, 3)).train.batch(0, 7, 1)
      >>> batch["inputs"][0].tolist(), batch["labels"][0].tolist()
      ([1, 0, 1, 2, 2, 2], [-1, -1, -1, 1, 0, 1])

    Source: Deletang et al. 2023, arXiv 2207.02098: train on 1..40, test on 41..500, score the mean
      over test lengths of the accuracy per token. Deviations: calibration and padding are not in
      the paper; deviations of single tasks are in their docstrings.
    """
    if not isinstance(task, Task):
        raise TypeError(
            "`task` must be one of `dynexit.data.tasks.chomsky.TASKS`, such as "
            f"TASKS['reverse_string'], got {task!r}"
        )
    ordered("lengths", lengths, 1, None)
    ordered("test_lengths", test_lengths, 1, None)
    splits = generated(
        functools.partial(_every_length, task=task, lengths=lengths),
        examples,
        test_draw=functools.partial(_every_length, task=task, lengths=test_lengths),
    )
    one_length = functools.partial(_one_length, task=task, lengths=lengths)
    endless = generated(one_length, examples, by_rows=task.draw in BY_ROWS).train
    return splits._replace(train=endless._replace(examples=splits.train.examples))


def dataset(settings: Chomsky) -> Dataset:
    """The data set of `dx.data.Chomsky`."""
    refuse_invalid(settings)
    s, task = settings, TASKS[settings.task]
    splits = chomsky(task, (1, s.length), (s.length + 1, s.test_length), s.examples)
    prepare = one_hot(task.vocabulary + 2) if s.one_hot else None
    return Dataset(*splits, s.inputs, s.classes, prepare=prepare)


def one_hot(vocabulary: int) -> Callable[[Any], Any]:
    """`prepare(tokens [b, L]) -> float32 [b, L, vocabulary]`."""
    import jax

    return lambda tokens: jax.nn.one_hot(tokens, vocabulary)


def _one_length(
    random: np.random.Generator, size: int, task: Task, lengths: tuple[int, int]
) -> Batch:
    length = int(random.integers(lengths[0], lengths[1] + 1))
    return _laid_out(random, size, length, task, lengths[1] + task.output_length(lengths[1]))


def _every_length(
    random: np.random.Generator, size: int, task: Task, lengths: tuple[int, int]
) -> Batch:
    low, high = lengths
    wanted, counts = np.unique(low + np.arange(size) * (high - low + 1) // size, return_counts=True)
    width = high + task.output_length(high)
    parts = [
        _laid_out(random, int(count), int(length), task, width)
        for length, count in zip(wanted, counts, strict=True)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _laid_out(random: np.random.Generator, size: int, length: int, task: Task, width: int) -> Batch:
    tokens, targets = task.draw(random, size, length)
    if task.masked:
        ended = np.cumsum(targets == 2, axis=1) - (targets == 2) > 0
        targets = np.where(ended, np.int32(IGNORED), targets)
    begin, end = tokens.shape[1], tokens.shape[1] + targets.shape[1]
    inputs = np.full((size, width), task.vocabulary + 1, np.int32)
    inputs[:, :begin], inputs[:, begin:end] = tokens, task.vocabulary
    labels = np.full((size, width), IGNORED, np.int32)
    labels[:, begin:end] = targets
    return {"inputs": inputs, "labels": labels, "steps": np.full(size, length, np.int32)}
