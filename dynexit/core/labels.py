"""Labels of a row: one class, or one for each of its places, some of which no loss and no score counts. Loads no JAX."""

from typing import Any

IGNORED = -1
"""The label of a place that no loss and no score counts."""


def exact(prediction: Any, labels: Any) -> Any:
    """Whether each row is right: all its places that count are.

    Args:
      prediction: classes, integers `[b, ...]`.
      labels: integers of the same shape; `IGNORED` at places that do not count.

    Returns:
      bool `[b]`, numpy or JAX as the arguments are.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> import numpy as np
      >>> exact(np.array([[1, 0], [1, 1]]), np.array([[1, IGNORED], [1, 0]])).tolist()
      [True, False]
    """
    _check(prediction, labels)
    right = (prediction == labels) | (labels == IGNORED)
    return right.all(axis=tuple(range(1, right.ndim)))


def share(prediction: Any, labels: Any) -> Any:
    """How much of each row is right: the fraction of its places that count.

    Args:
      prediction, labels: as in `exact`.

    Returns:
      Floating point `[b]` in 0..1; 0 for a row without a place that counts.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> import numpy as np
      >>> share(np.array([[1, 0, 2], [1, 1, 2]]), np.array([[1, IGNORED, 0], [1, 1, 2]])).tolist()
      [0.5, 1.0]
    """
    _check(prediction, labels)
    axes = tuple(range(1, labels.ndim))
    counts = (labels != IGNORED).sum(axis=axes)
    right = ((prediction == labels) & (labels != IGNORED)).sum(axis=axes)
    return right / counts.clip(1)


def _check(prediction: Any, labels: Any) -> None:
    if prediction.shape != labels.shape:
        raise ValueError(f"`prediction` must have the shape of `labels`, got {prediction.shape} and {labels.shape}")
