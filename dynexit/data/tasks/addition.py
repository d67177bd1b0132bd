"""Decimal addition, digit by digit from the lowest; the longest carry chain sets the steps."""

import functools

import numpy as np

from dynexit.core.data import Dataset, Splits
from dynexit.core.labels import IGNORED
from dynexit.core.settings import refuse_invalid
from dynexit.data.host_shapes import Int
from dynexit.data.source import Batch
from dynexit.data.tasks.procedural import at_least, generated, ordered
from dynexit.data.tasks.settings_sequences import Addition

PLUS, BLANK = 10, 11
"""The tokens after the ten digits."""


def addition(
    length: int,
    test_length: int | None = None,
    carries: tuple[int, int] | None = None,
    test_carries: tuple[int, int] | None = None,
    examples: int = 5000,
) -> Splits:
    """Two decimal numbers, the lowest digit first, and their sum.

    l1 ~ U{1..L/2}, l2 ~ U{1..L - l1 - 1} digits, independent and even, the highest not 0 unless it
    is the only one. Input: the first number, PLUS, the second, BLANK up to L. Steps: add all pairs
    of digits at once, then move all carries up by one place, until none remains: the longest carry
    chain (the number of consecutive places with a carry out) + 1.

    With `carries` = (low, high) the longest chain is exactly k ~ U{low..high}: l1 and l2 are drawn
    from k up, a chain of digits that make 10 or more, then 9, 9 ... is put at a random place of
    both, and digits that would make it longer, or make a longer one elsewhere, are drawn again from
    1..4.

    Args:
      length: L, tokens of an example in training and calibration, from 3.
      test_length: tokens in the test split, for extrapolation; by default as in training.
      carries: the range of the longest chain in training and calibration; None leaves the digits as
        they fall.
      test_carries: its range in the test split; by default as in training.
      examples: size of `calibration` and of `test`, and of `train.examples()`.

    Returns:
      Three sources; inputs int32 `[b, L]` in 0..11; labels int32 `[b, L]`, the digits of the sum,
      the lowest first, then IGNORED (-1); steps int32 `[b]`.

    Raises:
      ValueError: lengths below 3, `examples` below 1, a range that does not lie in 0..(L - 1) // 2.

    Example:
      >>> batch = addition(12, carries=(3, 3)).train.batch(0, 7, 4)
      >>> batch["steps"].tolist()
      [4, 4, 4, 4]
      >>> number = lambda digits: int("".join(map(str, digits[::-1])))
      >>> row, answer = batch["inputs"][0].tolist(), batch["labels"][0].tolist()
      >>> plus, end = row.index(PLUS), (row + [BLANK]).index(BLANK)
      >>> total = number([digit for digit in answer if digit != IGNORED])
      >>> number(row[:plus]) + number(row[plus + 1 : end]) == total
      True

    Source: the algorithmic tasks of Dehghani et al. 2019 (Universal Transformers), arXiv
      1807.03819, as tensor2tensor draws them: train on L = 40, test on 400. Deviations: a fixed L
      with blanks, no end token (the score leaves out what is IGNORED), training without end where
      the paper keeps 100,000 examples; `carries` is not in the paper.
    """
    test_length = length if test_length is None else test_length
    test_carries = carries if test_carries is None else test_carries
    at_least(3, length=length, test_length=test_length)
    for name, pair, tokens in (
        ("carries", carries, length),
        ("test_carries", test_carries, test_length),
    ):
        if pair is not None:
            ordered(name, pair, 0, (tokens - 1) // 2, f"({tokens} tokens - 1) // 2 = ")
    return generated(
        functools.partial(_draw, length=length, carries=carries),
        examples,
        test_draw=functools.partial(_draw, length=test_length, carries=test_carries),
    )


def dataset(settings: Addition) -> Dataset:
    """The data set of `dx.data.Addition`."""
    refuse_invalid(settings)
    s = settings
    splits = addition(s.length, s.test_length, s.carries, s.test_carries, s.examples)
    return Dataset(*splits, s.inputs, s.classes)


def _draw(
    random: np.random.Generator, size: int, length: int, carries: tuple[int, int] | None
) -> Batch:
    low, high = (0, 0) if carries is None else carries
    chain = random.integers(low, high + 1, size=size)
    shortest = np.maximum(chain, 1)
    lengths = random.integers(shortest, length // 2 + 1)
    lengths = np.stack([lengths, random.integers(shortest, length - lengths)])
    digits = _numbers(random, lengths, length - 2)
    if carries is not None:
        _impose(random, digits, lengths, chain)
        _cut(random, digits, lengths, chain)
    return {
        "inputs": _written(digits, lengths, length),
        "labels": _sums(digits, lengths, length),
        "steps": longest_chain(digits) + 1,
    }


def _numbers(random: np.random.Generator, lengths: np.ndarray, places: int) -> np.ndarray:
    """Digits int32 `[2, b, places]`, the lowest first, 0 beyond the length of their number.

    The highest is not 0, except at length 1.
    """
    digits = random.integers(0, 10, size=(*lengths.shape, places), dtype=np.int32)
    highest = (np.arange(places) == lengths[..., None] - 1) & (lengths[..., None] > 1)
    digits = np.where(highest, random.integers(1, 10, size=digits.shape, dtype=np.int32), digits)
    return np.where(np.arange(places) < lengths[..., None], digits, 0)


def _impose(
    random: np.random.Generator, digits: np.ndarray, lengths: np.ndarray, chain: np.ndarray
) -> None:
    """Imposes carry chains of `chain` `[b]` places where both numbers have digits, in place.

    No digit of a chain is 0.
    """
    begin = random.integers(0, lengths.min(axis=0) - chain + 1)[:, None]
    place = np.arange(digits.shape[-1])
    inside = (place >= begin) & (place < begin + chain[:, None])
    starts = inside & (place == begin)
    first = random.integers(1, 10, size=inside.shape, dtype=np.int32)
    carrying = random.integers(10 - first, 10, dtype=np.int32)
    passing = np.minimum(first, 8)
    digits[0] = np.where(starts, first, np.where(inside, passing, digits[0]))
    digits[1] = np.where(starts, carrying, np.where(inside, 9 - passing, digits[1]))


def _cut(
    random: np.random.Generator, digits: np.ndarray, lengths: np.ndarray, chain: np.ndarray
) -> None:
    """Ends every carry chain after `chain` `[b]` places, in place.

    The digits at the next place become 1..4.
    """
    small = random.integers(1, 5, size=digits.shape, dtype=np.int32)
    run = np.zeros(len(chain), np.int64)
    for place in range(digits.shape[-1]):
        run = _carried(run, digits[0, :, place] + digits[1, :, place])
        over = run > chain
        change = over & (place < lengths)
        digits[:, :, place] = np.where(change, small[:, :, place], digits[:, :, place])
        run[over] = 0


def _carried(run: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Length of the carry chain out of a place, from the chain into it and its sum of digits."""
    return np.where(total > 9, 1, np.where((total == 9) & (run > 0), run + 1, 0))


def longest_chain(digits: Int[np.ndarray, "2 b places"]) -> Int[np.ndarray, "b"]:
    """The longest carry chain of two numbers: consecutive places with the same carry.

    A place whose digits make 10 or more starts a chain whatever comes in (with the carry it cannot
    carry twice), a place that makes 9 passes on a carry that comes in, any other ends it.

    Args:
      digits: integers `[2, b, places]`, the lowest first.

    Returns:
      int32 `[b]`, 0 where nothing is carried.

    Example:
      >>> longest_chain(np.array([[[5, 9, 9, 0]], [[5, 0, 0, 0]]])).tolist()  # 995 + 5
      [3]
    """
    run = longest = np.zeros(digits.shape[1], np.int64)
    for total in np.moveaxis(digits.sum(axis=0), 1, 0):
        run = _carried(run, total)
        longest = np.maximum(longest, run)
    return longest.astype(np.int32)


def _written(digits: np.ndarray, lengths: np.ndarray, length: int) -> np.ndarray:
    """First number, PLUS, second number, blanks: int32 `[b, length]`."""
    place, (one, two) = np.arange(length), lengths[..., None]
    read = lambda number, at: np.take_along_axis(
        number, np.clip(at, 0, number.shape[1] - 1), axis=1
    )
    first = read(digits[0], np.broadcast_to(place, (len(one), length)))
    second = read(digits[1], place - one - 1)
    kinds = [place < one, place == one, place <= one + two]
    return np.select(kinds, [first, np.int32(PLUS), second], np.int32(BLANK)).astype(np.int32)


def _sums(digits: np.ndarray, lengths: np.ndarray, length: int) -> np.ndarray:
    """Digits of the sum, the lowest first, then IGNORED: int32 `[b, length]`."""
    labels = np.full((digits.shape[1], length), IGNORED, np.int32)
    carry = np.zeros(digits.shape[1], np.int32)
    longer = lengths.max(axis=0)
    for place in range(digits.shape[-1] + 1):
        total = carry + (digits[:, :, place].sum(axis=0) if place < digits.shape[-1] else 0)
        written = (place < longer) | (carry > 0)
        labels[:, place] = np.where(written, total % 10, IGNORED)
        carry = np.where(written, total // 10, 0)
    return labels
