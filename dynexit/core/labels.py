"""Labels of a row: one class, or one for each of its places, some of which no loss and no score
counts. Loads no JAX.
"""

from typing import Any

IGNORED = -1
"""The label of a place that no loss and no score counts. A row of such places counts nowhere."""


def places_counted(labels: Any) -> Any:
    """Which places count, bool in the shape of the labels: those that are not `IGNORED`, which
    unsigned labels cannot hold, or not NaN where labels are real.

    Example:
      >>> import numpy as np
      >>> places_counted(np.array([[1, IGNORED], [0, 1]])).tolist()
      [[True, False], [True, True]]
    """
    return labels != IGNORED if labels.dtype.kind == "i" else labels == labels


def rows_counted(labels: Any) -> Any:
    """Which rows count, bool `[b]`: those with a place that does. Every mean over rows is over
    these.

    Example:
      >>> import numpy as np
      >>> rows_counted(np.array([[1, IGNORED], [IGNORED, IGNORED]])).tolist()
      [True, False]
    """
    return places_counted(labels).any(axis=tuple(range(1, labels.ndim)))


def exact(prediction: Any, labels: Any) -> Any:
    """Whether each row is right: all its places that count are.

    Args:
      prediction: classes, integers `[b, ...]`.
      labels: integers of the same shape; `IGNORED` at places that do not count.

    Returns:
      bool `[b]`, numpy or JAX as the arguments are; False for a row without a place that counts,
      see `rows_counted`.

    Raises:
      TypeError: labels that are not integers.
      ValueError: the shapes differ.

    Example:
      >>> import numpy as np
      >>> exact(np.array([[1, 0], [1, 1]]), np.array([[1, IGNORED], [1, 0]])).tolist()
      [True, False]
    """
    _check(prediction, labels)
    right = (prediction == labels) | ~places_counted(labels)
    return right.all(axis=tuple(range(1, right.ndim))) & rows_counted(labels)


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
    axes, counted = tuple(range(1, labels.ndim)), places_counted(labels)
    right = ((prediction == labels) & counted).sum(axis=axes)
    return right / counted.sum(axis=axes).clip(1)


def check_labels(labels: Any, classes: int, source: str) -> None:
    """Refuses labels that are no class: a loss takes one of C for a NaN, and one below 0 for the
    last classes.

    Args:
      labels: integers of any shape, on the host; of another type nothing is asked.
      classes: C; with 0 nothing is asked.
      source: what they come from, in words.

    Raises:
      ValueError: one is neither in 0..C-1 nor `IGNORED`.

    Example:
      >>> import numpy as np
      >>> check_labels(np.array([0, 3]), 3, "train")
      Traceback (most recent call last):
        ...
      ValueError: labels of `train` must lie in 0..2 (3 classes), or be -1 at places that do not count; got 3
    """
    if (
        not classes
        or getattr(labels, "dtype", None) is None
        or labels.dtype.kind not in "iu"
        or not labels.size
    ):
        return
    for found in (int(labels.max()), int(labels.min())):
        if not (0 <= found < classes or found == IGNORED):
            raise ValueError(
                f"labels of `{source}` must lie in 0..{classes - 1} ({classes} classes), or be {IGNORED} at places that do not "
                f"count; got {found}"
            )


def _check(prediction: Any, labels: Any) -> None:
    for name, value in (("prediction", prediction), ("labels", labels)):
        if not hasattr(value, "dtype"):
            raise TypeError(f"`{name}` must be an array, got {type(value).__name__}")
    if labels.dtype.kind not in "iub":
        raise TypeError(
            f"`labels` must be integers, got {labels.dtype}; real labels need a `Method.score` of "
            "their own"
        )
    if prediction.shape != labels.shape:
        raise ValueError(
            f"`prediction` must have the shape of `labels`, got {prediction.shape} and {labels.shape}"
        )
