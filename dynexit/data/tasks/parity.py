"""The parity task of PonderNet: whether the number of +1 is odd; more non-zeros need more steps."""

import functools

import numpy as np

from dynexit.core.data import Dataset, Splits
from dynexit.core.settings import refuse_invalid
from dynexit.data.source import Batch
from dynexit.data.tasks.procedural import at_least, generated, ordered
from dynexit.data.tasks.settings_sequences import Parity

PARITY_CLASSES = ("even", "odd")


def parity(
    length: int,
    nonzeros: tuple[int, int] | None = None,
    test_nonzeros: tuple[int, int] | None = None,
    examples: int = 5000,
) -> Splits:
    """Vectors of {-1, 0, 1}; the label is the parity of the number of +1.

    K ~ U{low..high} entries at random places are +1 or -1 with equal chance, the rest 0; label =
    (number of +1) mod 2.

    `train` draws new examples: `train.batch(seed, step, size)` depends on nothing else, so a run
    resumes at any step. `calibration` and `test` are fixed sets of their own random streams; of
    short vectors, or of those with one or two non-zeros, there are so few that the same one may
    turn up in two splits.

    Args:
      length: L, entries of a vector.
      nonzeros: (low, high) in training and calibration, both included; (1, L) by default.
      test_nonzeros: (low, high) in the test split, for extrapolation; by default as in training.
      examples: size of `calibration` and of `test`, and of `train.examples()`.

    Returns:
      Three sources; inputs float32 `[b, L]`, labels int32 `[b]`, 0 for even, steps int32 `[b]`, the
      non-zeros. `train.size` is None.

    Raises:
      ValueError: `length` or `examples` below 1, or a range that does not lie in 0..L.

    Example:
      >>> train, calibration, test = parity(30, nonzeros=(1, 25), test_nonzeros=(26, 30))
      >>> batch = train.batch(0, 7, 4)
      >>> np.array_equal((batch["inputs"] == 1).sum(axis=1) % 2, batch["labels"])
      True

    Source: Banino, Balaguer, Blundell 2021, arXiv 2107.05407. Their settings, from memory: length
      64 with 1..64 non-zeros; for extrapolation length 96 with 1..48 in training and 49..96 in the
      test.
    """
    nonzeros = (1, length) if nonzeros is None else nonzeros
    test_nonzeros = nonzeros if test_nonzeros is None else test_nonzeros
    at_least(1, length=length, examples=examples)
    for name, pair in (("nonzeros", nonzeros), ("test_nonzeros", test_nonzeros)):
        ordered(name, pair, 0, length, "length ")
    return generated(
        functools.partial(_draw, length=length, nonzeros=nonzeros),
        examples,
        test_draw=functools.partial(_draw, length=length, nonzeros=test_nonzeros),
        by_rows=True,
    )


def dataset(settings: Parity) -> Dataset:
    """The data set of `dx.data.Parity`."""
    refuse_invalid(settings)
    splits = parity(settings.length, *settings.nonzeros(), examples=settings.examples)
    return Dataset(*splits, settings.inputs, settings.classes)


def _draw(random: np.random.Generator, size: int, length: int, nonzeros: tuple[int, int]) -> Batch:
    count = random.integers(nonzeros[0], nonzeros[1] + 1, size=(size, 1))
    signs = random.integers(0, 2, size=(size, length), dtype=np.int8) * 2 - 1
    places = random.random((size, length), dtype=np.float32).argsort(axis=1)
    inputs = np.zeros((size, length), np.float32)
    np.put_along_axis(inputs, places, np.where(np.arange(length) < count, signs, 0), axis=1)
    labels = ((inputs == 1).sum(axis=1) % 2).astype(np.int32)
    return {"inputs": inputs, "labels": labels, "steps": count[:, 0].astype(np.int32)}
