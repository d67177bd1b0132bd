"""Copy and reverse: strings of decimal digits, to be written again, forwards or backwards."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from dynexit.core.data import Dataset, Splits
from dynexit.core.labels import IGNORED
from dynexit.core.settings import refuse_invalid
from dynexit.data.source import Batch
from dynexit.data.tasks.addition import BLANK
from dynexit.data.tasks.procedural import at_least, generated
from dynexit.data.tasks.settings_sequences import Copying


def copying(
    length: int, test_length: int | None = None, backwards: bool = False, examples: int = 5000
) -> Splits:
    """Strings of l ~ U{1..L} digits, the same again as labels, or from the last to the first.

    Args:
      length: L, tokens of an example in training and calibration.
      test_length: tokens in the test split, for extrapolation; by default as in training.
      backwards: reverse rather than copy.
      examples: size of `calibration` and of `test`, and of `train.examples()`.

    Returns:
      Three sources; inputs int32 `[b, L]`, digits, then `addition.BLANK`; labels int32 `[b, L]`,
      digits, then IGNORED (-1); steps int32 `[b]` = l, the digits that one head moves one at a
      time.

    Raises:
      ValueError: lengths or `examples` below 1.

    Example:
      >>> batch = copying(6, backwards=True).train.batch(0, 7, 1)
      >>> count = int(batch["steps"][0])
      >>> batch["inputs"][0, :count].tolist() == batch["labels"][0, :count][::-1].tolist()
      True

    Source: as `addition`: Universal Transformers train on L = 40 and test on 400. Deviations as
      there.
    """
    test_length = length if test_length is None else test_length
    at_least(1, length=length, test_length=test_length)
    return generated(
        functools.partial(_draw, length=length, backwards=backwards),
        examples,
        test_draw=functools.partial(_draw, length=test_length, backwards=backwards),
        by_rows=True,
    )


def dataset(settings: Copying) -> Dataset:
    """The data set of `dx.data.Copying`."""
    refuse_invalid(settings)
    s = settings
    splits = copying(s.length, s.test_length, s.backwards, s.examples)
    augment = positions_from(s.shift) if s.shift else None
    return Dataset(*splits, s.inputs, s.classes, augment=augment)


def positions_from(shift: int) -> Callable[[Any, Any], Any]:
    """`augment(key, tokens [b, L]) -> {"tokens", "positions"}`; positions begin at 0..shift."""
    import jax
    import jax.numpy as jnp

    def augment(key: Any, tokens: Any) -> Any:
        begin = jax.random.randint(key, (len(tokens), 1), 0, shift + 1)
        place = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        return {"tokens": tokens, "positions": begin + place}

    return augment


def _draw(random: np.random.Generator, size: int, length: int, backwards: bool) -> Batch:
    count = random.integers(1, length + 1, size=(size, 1))
    place = np.arange(length)
    digits = random.integers(0, 10, size=(size, length), dtype=np.int32)
    written = np.take_along_axis(digits, np.abs(count - 1 - place), axis=1) if backwards else digits
    return {
        "inputs": np.where(place < count, digits, np.int32(BLANK)),
        "labels": np.where(place < count, written, np.int32(IGNORED)),
        "steps": count[:, 0].astype(np.int32),
    }
