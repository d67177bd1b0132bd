"""The parity task of PonderNet: is the number of +1 odd or even? The more non-zeros, the more steps it takes."""

from typing import TYPE_CHECKING

import numpy as np

from dynexit.data.arrays import Splits, from_arrays

if TYPE_CHECKING:
    from dynexit.core.types import Source

PARITY_CLASSES = ("even", "odd")

# The last word of Philox's counter: streams that differ in it share no draw, whatever seed and step.
_TRAIN, _TRAIN_EXAMPLES, _CALIBRATION, _TEST = 1, 2, 3, 4


def parity(
    length: int,
    nonzeros: tuple[int, int] | None = None,
    test_nonzeros: tuple[int, int] | None = None,
    examples: int = 5000,
) -> Splits:
    """Vectors of {-1, 0, 1} with a random number of non-zeros; the label is the parity of the number of +1.

    K ~ U{low..high} entries at random places are +1 or -1 with equal chance, the rest 0; label = (number of +1) mod 2.

    `train` is drawn afresh: `train.batch(seed, step, size)` depends on nothing else, so a run resumes at any step.
    `calibration` and `test` are fixed sets of their own random streams; of short vectors, or of those with one or two
    non-zeros, there are so few that the same one may turn up in two splits.

    Args:
      length: L, entries of a vector.
      nonzeros: (low, high) in training and calibration, both included; (1, L) by default.
      test_nonzeros: (low, high) in the test split, for extrapolation; by default as in training.
      examples: size of `calibration` and of `test`, and of `train.examples()`.

    Returns:
      Three sources; inputs float32 `[b, L]`, labels int32 `[b]`, 0 for even. `train.size` is None.

    Raises:
      ValueError: `length` or `examples` below 1, or a range that does not lie in 0..L.

    Example:
      >>> train, calibration, test = parity(30, nonzeros=(1, 25), test_nonzeros=(26, 30))
      >>> batch = train.batch(0, 7, 4)
      >>> np.array_equal((batch["inputs"] == 1).sum(axis=1) % 2, batch["labels"])
      True

    Source: Banino, Balaguer, Blundell 2021, arXiv 2107.05407. Their settings, from memory: length 64 with 1..64
    non-zeros; for extrapolation length 96 with 1..48 in training and 49..96 in the test.
    """
    nonzeros = (1, length) if nonzeros is None else nonzeros
    test_nonzeros = nonzeros if test_nonzeros is None else test_nonzeros
    for name, value in (("length", length), ("examples", examples)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    for name, (low, high) in (("nonzeros", nonzeros), ("test_nonzeros", test_nonzeros)):
        if not 0 <= low <= high <= length:
            raise ValueError(f"`{name}` must be (low, high) with 0 <= low <= high <= length {length}, got {(low, high)}.")
    calibration = _draw(_CALIBRATION, 0, 0, examples, length, nonzeros)
    test = _draw(_TEST, 0, 0, examples, length, test_nonzeros)
    return Splits(
        _endless(length, nonzeros, examples),
        from_arrays("calibration", calibration["inputs"], calibration["labels"]),
        from_arrays("test", test["inputs"], test["labels"]),
    )


def _endless(length: int, nonzeros: tuple[int, int], examples: int) -> "Source":
    from dynexit.core.types import Source  # loads JAX

    def batch(seed: int, step: int, size: int) -> dict:
        for name, value, low in (("seed", seed, 0), ("step", step, 0), ("size", size, 1)):
            if value < low:
                raise ValueError(f"`{name}` must be at least {low}, got {value}.")
        return _draw(_TRAIN, seed, step, size, length, nonzeros)

    return Source("train", batch, lambda: _draw(_TRAIN_EXAMPLES, 0, 0, examples, length, nonzeros), None)


def _draw(stream: int, seed: int, step: int, size: int, length: int, nonzeros: tuple[int, int]) -> dict:
    bits = np.random.Philox(key=np.array([seed, step], np.uint64), counter=np.array([0, 0, 0, stream], np.uint64))
    random = np.random.Generator(bits)
    count = random.integers(nonzeros[0], nonzeros[1] + 1, size=(size, 1))
    signs = random.integers(0, 2, size=(size, length), dtype=np.int8) * 2 - 1
    places = random.random((size, length), dtype=np.float32).argsort(axis=1)
    inputs = np.zeros((size, length), np.float32)
    np.put_along_axis(inputs, places, np.where(np.arange(length) < count, signs, 0), axis=1)
    return {"inputs": inputs, "labels": ((inputs == 1).sum(axis=1) % 2).astype(np.int32)}
