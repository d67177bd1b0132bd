"""Prefix sums of bits: the parity at each place, a chain of as many steps as there are bits."""

import functools

import numpy as np

from dynexit.core.data import Dataset, Splits
from dynexit.core.settings import refuse_invalid
from dynexit.data.source import Batch
from dynexit.data.tasks.procedural import at_least, generated
from dynexit.data.tasks.settings_sequences import PrefixSums


def prefix_sums(length: int, test_length: int | None = None, examples: int = 5000) -> Splits:
    """Strings of random bits; the label of each place is the parity of the ones up to it.

    y_i = (x_1 + ... + x_i) mod 2, the bits independent and even; the input holds x - 0.5.

    Args:
      length: n, bits of a string in training and calibration.
      test_length: bits of a string in the test split, for extrapolation; by default as in training.
      examples: size of `calibration` and of `test`, and of `train.examples()`.

    Returns:
      Three sources; inputs float32 `[b, n, 1]` of -0.5 and 0.5, labels int32 `[b, n]`, steps int32
      `[b]` = n.

    Raises:
      ValueError: `length`, `test_length` or `examples` below 1.

    Example:
      >>> batch = prefix_sums(32, test_length=512).train.batch(0, 7, 4)
      >>> np.array_equal(np.cumsum(batch["inputs"][..., 0] > 0, axis=1) % 2, batch["labels"])
      True

    Source: Schwarzschild et al. 2021, arXiv 2106.04537, and Bansal et al. 2022, arXiv 2202.05826
      (train on 32 bits, test on 512). Deviations: the channel comes last; training draws without
      end where the papers keep 10,000 strings, and strings of fewer than 24 bits may repeat where
      theirs are distinct.
    """
    test_length = length if test_length is None else test_length
    at_least(1, length=length, test_length=test_length)
    return generated(
        functools.partial(_draw, length=length),
        examples,
        test_draw=functools.partial(_draw, length=test_length),
        by_rows=True,
    )


def dataset(settings: PrefixSums) -> Dataset:
    """The data set of `dx.data.PrefixSums`."""
    refuse_invalid(settings)
    splits = prefix_sums(settings.length, settings.test_length, settings.examples)
    return Dataset(*splits, settings.inputs, settings.classes)


def _draw(random: np.random.Generator, size: int, length: int) -> Batch:
    bits = random.integers(0, 2, size=(size, length), dtype=np.int8)
    return {
        "inputs": bits[:, :, None] - np.float32(0.5),
        "labels": (np.cumsum(bits, axis=1, dtype=np.int32) % 2).astype(np.int32),
        "steps": np.full(size, length, np.int32),
    }
