"""Handwritten digits: the 1,797 real 8x8 scans of scikit-learn; no network, no preparation."""

import functools
import logging
from typing import Any

import numpy as np

from dynexit.core.data import Dataset, Source, Splits
from dynexit.core.settings import refuse_invalid
from dynexit.data import store
from dynexit.data.source import from_arrays
from dynexit.data.split import stratified_order
from dynexit.data.vision.settings import Digits

DIGITS_CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

DIGITS_MEAN, DIGITS_STD = 0.3051, 0.3758
"""Of the training split, as fractions of 16."""

TRAIN, CALIBRATION, TEST = 1000, 347, 450

RECIPE = store.Recipe(
    name="digits",
    shape=(8, 8, 1),
    classes=DIGITS_CLASSES,
    description="1,797 handwritten digits, 8x8 pixels of 0..16: the test part of UCI's optical "
    "digits.",
    homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
    cure="Run `dynexit data prepare digits`.",
)


def digits(seed_of_split: int = 0, folder: store.PathLike | None = None) -> Splits:
    """scikit-learn's digits as `train` (1,000), `calibration` (347) and `test` (450).

    The splits are stratified by class and disjoint.

    The first call writes the records into the data folder, in a second or two; where that is not
    possible (a read-only folder, or tensorflow-datasets not installed) the scans are taken from
    scikit-learn directly, and are the same.

    Args:
      seed_of_split: which examples fall into which split; keep it to compare runs.
      folder: where the prepared data lives, see `dynexit.data.store.data_folder`.

    Returns:
      Three sources; inputs uint8 `[b, 8, 8, 1]` with values 0..16, labels int32 `[b]`, 0..9.

    Raises:
      DataDamaged: the prepared records are not what was written.

    Example:
      >>> train, calibration, test = digits()
      >>> train.size, calibration.size, test.size
      (1000, 347, 450)
      >>> train.batch(0, 0, 32)["inputs"].shape
      (32, 8, 8, 1)
    """
    images, labels = _scans(folder)
    order = stratified_order(labels, seed_of_split)
    train, calibration, test = np.split(order, [TRAIN, TRAIN + CALIBRATION])
    return Splits(
        from_arrays("train", images[train], labels[train]),
        from_arrays("calibration", images[calibration], labels[calibration]),
        from_arrays("test", images[test], labels[test]),
    )


def dataset(settings: Digits) -> Dataset:
    """The data set of `dx.data.Digits`."""
    from dynexit.data.augment import random_crop, to_float

    refuse_invalid(settings)
    train, calibration, test = digits()
    scaled = functools.partial(to_float, maximum=16.0, mean=0.305, std=0.376)
    return Dataset(
        train,
        shifted(calibration, settings.shift) if settings.shift_calibration else calibration,
        test,
        settings.inputs,
        settings.classes,
        augment=functools.partial(random_crop, padding=settings.shift) if settings.shift else None,
        prepare=(lambda images: _pixels(scaled(images))) if settings.sequence else scaled,
    )


def _pixels(images: Any) -> Any:
    """Images `[b, 8, 8, 1]` as sequences of pixels `[b, 64, 1]`, row by row."""
    return images.reshape(len(images), 64, 1)


def shifted(source: Source, by: int) -> Source:
    """A split with every image moved by -by..by pixels each way."""
    whole, places = source.examples(), range(2 * by + 1)
    height, width = whole["inputs"].shape[1:3]
    padded = np.pad(whole["inputs"], ((0, 0), (by, by), (by, by), (0, 0)))
    moved = [padded[:, y : y + height, x : x + width] for y in places for x in places]
    labels = np.tile(whole["labels"], len(places) ** 2)
    return from_arrays(source.split, np.concatenate(moved), labels)


def digits_builder(folder: store.PathLike | None = None) -> store.Builder:
    """The tensorflow-datasets builder of the digits: one split "scans" in scikit-learn's order."""
    return store.builder(RECIPE, folder)


def read_raw() -> store.Arrays:
    """scikit-learn's scans: {"scans": (images uint8 `[1797, 8, 8, 1]`, labels int32 `[1797]`)}."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return {"scans": (images.reshape(-1, 8, 8, 1).astype(np.uint8), labels.astype(np.int32))}


@functools.lru_cache(maxsize=1)
def _scans(folder: store.PathLike | None) -> store.Pair:
    try:
        return store.load(RECIPE, folder)["scans"]
    except store.DataNotPrepared:
        arrays = read_raw()
    try:
        store.prepare(RECIPE, arrays, folder, progress=False)
    except (OSError, ImportError) as error:
        logging.getLogger(__name__).info("digits are read from scikit-learn: %s", error)
    return arrays["scans"]
