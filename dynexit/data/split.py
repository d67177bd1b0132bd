"""Splitting rows into train, calibration and test, with the classes in proportion."""

import numpy as np

from dynexit.data.host_shapes import Int, Num


def stratified_order(labels: Num[np.ndarray, "n"], seed: int) -> Int[np.ndarray, "n"]:
    """A shuffle of which every long enough stretch holds the classes in proportion.

    The r-th of the n rows of a class is put at the fraction (r + 1/2) / n of the way; ties are
    ordered by the shuffle.

    Args:
      labels: int `[n]`.
      seed: integer from 0.

    Returns:
      int64 `[n]`, a permutation of 0..n-1.
    """
    shuffled = np.random.Generator(np.random.Philox(seed)).permutation(len(labels))
    place = np.empty(len(labels))
    for value in np.unique(labels):
        members = np.flatnonzero(labels[shuffled] == value)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(place, kind="stable")]


def stratified_split(
    labels: Num[np.ndarray, "n"], calibration: float, test: float, seed: int
) -> tuple[Int[np.ndarray, "train"], Int[np.ndarray, "calibration"], Int[np.ndarray, "test"]]:
    """The rows of train, calibration and test: disjoint, and a function of labels and seed.

    Args:
      labels: int `[n]`, n at least 3.
      calibration, test: fractions of the rows, above 0; the rest is for training. Each split has
        at least one row.
      seed: integer from 0.

    Returns:
      int64 row numbers of each, sorted.

    Raises:
      ValueError: fewer than 3 rows, or fractions that leave nothing to train on.

    Example:
      >>> train, calibration, test = stratified_split(np.arange(10) % 2, 0.2, 0.2, seed=0)
      >>> len(train), len(calibration), sorted((np.arange(10) % 2)[test].tolist())
      (6, 2, [0, 1])
    """
    count = len(labels)
    held, tested = (max(1, round(fraction * count)) for fraction in (calibration, test))
    if not (calibration > 0 and test > 0 and calibration + test < 1) or held + tested >= count:
        raise ValueError(
            "`calibration` and `test` must be fractions above 0 that leave rows to train on, "
            f"got {calibration} and {test} of {count} rows"
        )
    parts = np.split(stratified_order(labels, seed), [count - held - tested, count - tested])
    first, second, third = map(np.sort, parts)
    return first, second, third
