"""Rows per exit, and the points of a curve to keep."""

import numpy as np

from dynexit.core.shapes import Int, Num


def rank_correlation(a: Num[np.ndarray, "M"], b: Num[np.ndarray, "M"]) -> float | None:
    """Spearman's correlation of two lists `[M]`; None where one of them is constant.

    Ties share their rank.

    Example:
      >>> rank_correlation(np.array([1, 5, 9, 9]), np.array([2, 3, 7, 7]))
      1.0
    """
    from scipy.stats import rankdata

    ranks = [rankdata(x) - (len(x) + 1) / 2 for x in (a, b)]
    scale = np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    return float(ranks[0] @ ranks[1] / scale) if scale > 0 else None


def spread(values: Num[np.ndarray, "K"], count: int) -> Int[np.ndarray, "P"]:
    """At most `count` indices, in rising order of their values, which are evenly spread.

    Example:
      >>> spread(np.array([5.0, 0.0, 1.0, 10.0, 4.9]), 3).tolist()
      [1, 0, 3]
    """
    wanted = np.linspace(values.min(), values.max(), count)
    nearest = {int(np.argmin(np.abs(values - w))): None for w in wanted}
    return np.array(sorted(nearest, key=lambda k: values[k]))


def depth_histogram(exit: Int[np.ndarray, "M"], exits: int) -> Int[np.ndarray, "E"]:
    """int64 `[E]`: rows that exited at each exit."""
    return np.bincount(exit, minlength=exits)


def upper_envelope(
    cost: Num[np.ndarray, "K"], accuracy: Num[np.ndarray, "K"]
) -> Int[np.ndarray, "P"]:
    """Indices, in rising cost, of the points that no cheaper point matches in accuracy.

    Example:
      >>> upper_envelope(np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.4, 0.9])).tolist()
      [0, 2]
    """
    best, kept = -np.inf, []
    for k in np.lexsort((-accuracy, cost)):
        if accuracy[k] > best:
            kept.append(int(k))
            best = accuracy[k]
    return np.array(kept)
