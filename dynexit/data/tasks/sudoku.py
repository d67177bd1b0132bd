"""Sudoku of 4x4 or 9x9 places; fewer clues need more rounds of elimination."""

import functools
from collections.abc import Sequence

import numpy as np

from dynexit.core.data import Dataset, Splits
from dynexit.core.settings import refuse_invalid
from dynexit.data.host_shapes import Int
from dynexit.data.source import Batch
from dynexit.data.tasks.procedural import at_least, generated, ordered
from dynexit.data.tasks.settings_grids import Sudoku

FEWEST = {2: 4, 3: 26}
"""The fewest clues, by the side of a box; with fewer clues of 9x9 too many draws are rejected."""


def sudoku(
    box: int = 2,
    clues: tuple[int, int] = (4, 8),
    test_clues: tuple[int, int] | None = None,
    examples: int = 1000,
) -> Splits:
    """Puzzles with one solution; the label of each place is its digit in the solution.

    A complete grid is drawn and its digits are removed one by one, in random order, each where the
    remaining puzzle can still be solved by naked singles, until k remain, k ~ U{low..high}; where k
    is not reached, grid and order are drawn again. A naked single is an empty place for which row,
    column and box leave one digit. A puzzle that such steps alone fill has no second solution.
    There are so few puzzles of 4x4 that training would draw those of the test, so each belongs to
    one split, by a digest of its digits: six eighths to training, one to calibration and one to the
    test.

    Args:
      box: side of a box, 2 or 3; n = box^2 digits, grids of n x n places.
      clues: (low, high), digits given, both included; from 4 of 16 places or 26 of 81.
      test_clues: the same for the test split, for extrapolation; by default as in training.
      examples: size of `calibration` and of `test`, and of `train.examples()`.

    Returns:
      Three sources; inputs int8 `[b, n n]`, row by row, 0 for an empty place and else the digit
      1..n; labels int32 `[b, n n]`, digit - 1, of all places; steps int32 `[b]`, rounds until no
      place is empty where a round fills all naked singles at once.

    Raises:
      ValueError: `box` neither 2 nor 3, clues out of range, `examples` below 1.

    Example:
      >>> batch = sudoku(clues=(4, 5)).train.batch(0, 7, 3)
      >>> batch["inputs"].shape, (batch["inputs"] > 0).sum(axis=1).tolist()
      ((3, 16), [5, 4, 5])
      >>> given = batch["inputs"] > 0
      >>> np.array_equal(batch["labels"][given] + 1, batch["inputs"][given])
      True

    Source: the task of Wang et al. 2025, arXiv 2506.21734 (HRM), and Jolicoeur-Martineau 2025,
      arXiv 2510.04871 (TRM), who train on 1,000 hard puzzles of 9x9 and their permutations.
      Deviations: these are drawn without end, need no guessing, and include the 4x4 that fits two
      cores. All 288 grids of 4x4 are drawn alike; those of 9x9 are the permutations of one.
    """
    if box not in FEWEST:
        raise ValueError(f"`box` must be 2 or 3, got {box}.")
    test_clues = clues if test_clues is None else test_clues
    for name, pair in (("clues", clues), ("test_clues", test_clues)):
        ordered(name, pair, FEWEST[box], box**4, "all places, ")
    at_least(1, examples=examples)
    train, calibration, test = (
        functools.partial(_draw, box=box, clues=pair, eighths=eighths)
        for pair, eighths in ((clues, range(2, 8)), (clues, (1,)), (test_clues, (0,)))
    )
    return generated(train, examples, test, calibration)


def dataset(settings: Sudoku) -> Dataset:
    """The data set of `dx.data.Sudoku`."""
    refuse_invalid(settings)
    clues = (settings.fewest, settings.most)
    splits = sudoku(settings.box, clues, examples=settings.examples)
    return Dataset(*splits, settings.inputs, settings.classes)


def solved(
    puzzles: Int[np.ndarray, "b places"], box: int
) -> tuple[Int[np.ndarray, "b places"], Int[np.ndarray, "b"]]:
    """Puzzles after as many rounds of naked singles as change anything.

    Args:
      puzzles: integers `[b, n n]`, 0 for empty places; none that breaks the rules.
      box: side of a box.

    Returns:
      Grids int8 `[b, n n]`, complete where naked singles suffice, and the rounds that changed
      something, int32 `[b]`.

    Example:
      >>> grid, rounds = solved(np.array([[1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 0, 0]]), 2)
      >>> grid[0, -2:].tolist(), rounds.tolist()
      ([2, 1], [1])
    """
    n = box * box
    grids = _bits(puzzles).reshape(-1, n, n)
    rounds = np.zeros(len(grids), np.int32)
    while True:
        single = _singles(grids, box)
        found = (single != 0).any(axis=(1, 2))
        if not found.any():
            return _digits(grids).reshape(-1, n * n), rounds
        grids |= single
        rounds += found


def eighth(puzzles: Int[np.ndarray, "b 16"]) -> Int[np.ndarray, "b"]:
    """The eighth of all puzzles of 4x4 that each is in, int `[b]` in 0..7, by a hash of its digits.

    Example:
      >>> eighth(np.zeros((1, 16), np.int8)).tolist()
      [0]
    """
    number = (puzzles.astype(np.uint64) * np.uint64(5) ** np.arange(16, dtype=np.uint64)).sum(
        axis=1, dtype=np.uint64
    )
    return (number * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(61)).astype(np.int64)


def _draw(
    random: np.random.Generator, size: int, box: int, clues: tuple[int, int], eighths: Sequence[int]
) -> Batch:
    labels = np.zeros((size, box**4), np.int8)
    inputs = np.zeros_like(labels)
    wanted = random.integers(clues[0], clues[1] + 1, size=size)
    todo = np.arange(size)
    while len(todo):
        grids = _grids(random, len(todo), box)
        puzzles = _dug(random, grids, wanted[todo], box)
        done = (puzzles > 0).sum(axis=1) == wanted[todo]
        if box == 2:
            done &= np.isin(eighth(puzzles), list(eighths))
        inputs[todo[done]], labels[todo[done]] = puzzles[done], grids[done]
        todo = todo[~done]
    return {
        "inputs": inputs,
        "labels": labels.astype(np.int32) - 1,
        "steps": solved(inputs, box)[1],
    }


def _dug(
    random: np.random.Generator, grids: np.ndarray, wanted: np.ndarray, box: int
) -> np.ndarray:
    """Grids without digits that naked singles fill, down to `wanted` digits or to the limit."""
    puzzles, rows = grids.copy(), np.arange(len(grids))
    order = random.permuted(np.tile(np.arange(box**4), (len(grids), 1)), axis=1)
    for place in order.T:
        more = rows[(puzzles > 0).sum(axis=1) > wanted]
        if not len(more):
            break
        fewer = puzzles[more]
        fewer[np.arange(len(more)), place[more]] = 0
        kept = (solved(fewer, box)[0] > 0).all(axis=1)
        puzzles[more[kept]] = fewer[kept]
    return puzzles


def _singles(grids: np.ndarray, box: int) -> np.ndarray:
    """The digits of naked singles, elsewhere 0; digits are bits, uint16 `[b, n, n]`."""
    n = box * box
    union = functools.partial(np.bitwise_or.reduce, keepdims=True)
    boxes = union(union(grids.reshape(-1, box, box, box, box), axis=2), axis=4)
    boxes = np.broadcast_to(boxes, (len(grids), box, box, box, box)).reshape(-1, n, n)
    left = ~(union(grids, axis=1) | union(grids, axis=2) | boxes) & np.uint16(2**n - 1)
    return np.where((grids == 0) & (left & (left - np.uint16(1)) == 0), left, np.uint16(0))


def _bits(digits: np.ndarray) -> np.ndarray:
    return np.where(
        digits > 0, np.left_shift(1, np.maximum(digits, 1).astype(np.int32) - 1), 0
    ).astype(np.uint16)


def _digits(bits: np.ndarray) -> np.ndarray:
    return (np.frexp(bits)[1]).astype(np.int8)  # the bit d - 1 is 2^(d - 1) = 0.5 x 2^d


def _grids(random: np.random.Generator, size: int, box: int) -> np.ndarray:
    """Complete grids, int8 `[size, n n]`."""
    if box == 2:
        return all_grids()[random.integers(0, 288, size=size)]
    n, places = box * box, np.arange(box * box)
    ranks = lambda *shape: random.permuted(np.tile(np.arange(shape[-1]), (*shape[:-1], 1)), axis=-1)
    lines = lambda: (box * ranks(size, box)[:, :, None] + ranks(size, box, box)).reshape(
        size, n
    )  # bands, then lines in each
    rows, columns = lines()[:, :, None], lines()[:, None, :]
    grids = (box * (rows % box) + rows // box + columns) % n
    grids = np.where(random.integers(0, 2, size=(size, 1, 1)) == 1, grids.transpose(0, 2, 1), grids)
    digits = random.permuted(np.tile(places + 1, (size, 1)), axis=1)
    return np.take_along_axis(digits, grids.reshape(size, n * n), axis=1).astype(np.int8)


@functools.cache
def all_grids() -> Int[np.ndarray, "288 16"]:
    """All complete grids of 4x4, int8 `[288, 16]`, read-only.

    Example:
      >>> all_grids()[0].tolist()
      [1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1]
    """
    grids = np.zeros((1, 16), np.int8)
    for place in range(16):
        row, column = divmod(place, 4)
        corner = 8 * (row // 2) + 2 * (column // 2)
        box = (corner, corner + 1, corner + 4, corner + 5)
        seen = [*range(4 * row, place), *range(column, place, 4), *(p for p in box if p < place)]
        grids = np.repeat(grids, 4, axis=0)
        grids[:, place] = np.arange(len(grids)) % 4 + 1
        grids = grids[(grids[:, seen] != grids[:, place, None]).all(axis=1)]
    grids.flags.writeable = False
    return grids
