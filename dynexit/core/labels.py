"""Labels of a row: one class, or one for each of its places; loads no JAX.

`IGNORED` marks places that no loss and no score counts.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynexit.core.shapes import AnyArray, Bool, Float, Int, Num

IGNORED = -1
"""The label of a place that no loss and no score counts. A row of such places counts nowhere."""


def places_counted(labels: "Num[AnyArray, '...']") -> "Bool[Any, '...']":
    """Places that count, bool in the shape of the labels: those that are not `IGNORED`.

    Where labels are real, those that are not NaN count. Unsigned labels cannot hold `IGNORED`.

    Example:
      >>> import numpy as np
      >>> places_counted(np.array([[1, IGNORED], [0, 1]])).tolist()
      [[True, False], [True, True]]
    """
    return labels != IGNORED if labels.dtype.kind == "i" else labels == labels


def rows_counted(labels: "Num[AnyArray, 'b ...']") -> "Bool[Any, 'b']":
    """Rows that count, bool `[b]`: those with a place that counts.

    Every mean over rows is over these.

    Example:
      >>> import numpy as np
      >>> rows_counted(np.array([[1, IGNORED], [IGNORED, IGNORED]])).tolist()
      [True, False]
    """
    return places_counted(labels).any(axis=tuple(range(1, labels.ndim)))


LARGEST = 2**31 - 1


def as_labels(
    labels: Any, ignore_label: int | None = None, name: str = "labels"
) -> "Int[Any, '...']":
    """Labels as int32, the one type in which `IGNORED` differs from every class.

    As uint8, -1 equals 255, so that class 255 of 256 would be taken for `IGNORED`. Every function
    that takes labels converts them here first.

    Args:
      labels: integers of any shape: numpy, JAX (traced or not), or nested lists.
      ignore_label: a label that becomes `IGNORED` too, for example -100 of PyTorch.
      name: what messages call them.

    Returns:
      int32 of the same shape, numpy or JAX as `labels` are.

    Raises:
      TypeError: labels that are not integers.
      ValueError: numpy labels that int32 does not hold.

    Example:
      >>> import numpy as np
      >>> as_labels(np.array([255, 7], np.uint8)).tolist(), as_labels([3, -100], -100).tolist()
      ([255, 7], [3, -1])
    """
    if not hasattr(labels, "dtype"):
        import numpy as np

        labels = np.asarray(labels)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"`{name}` must be integers, got {labels.dtype}")
    if ignore_label is not None and (
        isinstance(ignore_label, bool) or not isinstance(ignore_label, int)
    ):
        raise TypeError(f"`ignore_label` must be an integer or None, got {ignore_label!r}")
    if labels.dtype.itemsize * 8 - (labels.dtype.kind == "u") >= 32 and _is_numpy(labels):
        _refuse_beyond_int32(labels, name)
    labels = labels.astype("int32")
    if ignore_label is None or abs(ignore_label) >= LARGEST:
        return labels
    ignored = (labels == ignore_label).astype("int32")
    return labels + ignored * (IGNORED - ignore_label)


def exact(prediction: Any, labels: Any) -> "Bool[Any, 'b']":
    """Whether each row is right: all its places that count are.

    Args:
      prediction: classes, integers `[b, ...]`.
      labels: integers of the same shape; `IGNORED` at places that do not count.

    Returns:
      bool `[b]`, numpy or JAX as the arguments are; False for a row without a place that counts,
      see `rows_counted`.

    Raises:
      TypeError: labels or predictions that are not integers.
      ValueError: the shapes differ.

    Example:
      >>> import numpy as np
      >>> exact(np.array([[1, 0], [1, 1]]), np.array([[1, IGNORED], [1, 0]])).tolist()
      [True, False]
    """
    prediction, labels = _paired(prediction, labels)
    right = (prediction == labels) | ~places_counted(labels)
    return right.all(axis=tuple(range(1, right.ndim))) & rows_counted(labels)


def share(prediction: Any, labels: Any) -> "Float[Any, 'b']":
    """How much of each row is right: the fraction of its places that count.

    Args:
      prediction, labels: as in `exact`.

    Returns:
      Floating point `[b]` in 0..1; 0 for a row without a place that counts.

    Raises:
      TypeError: labels or predictions that are not integers.
      ValueError: the shapes differ.

    Example:
      >>> import numpy as np
      >>> share(np.array([[1, 0, 2], [1, 1, 2]]), np.array([[1, IGNORED, 0], [1, 1, 2]])).tolist()
      [0.5, 1.0]
    """
    prediction, labels = _paired(prediction, labels)
    axes, counted = tuple(range(1, labels.ndim)), places_counted(labels)
    right = ((prediction == labels) & counted).sum(axis=axes)
    return right / counted.sum(axis=axes).clip(1)


def check_labels(labels: Any, classes: int, source: str) -> None:
    """Refuses labels that are no class: a loss is a NaN for them.

    Args:
      labels: of any shape, on the host; those of floating point are not checked.
      classes: C; with 0 there is no upper bound.
      source: where they come from, for the message.

    Raises:
      ValueError: a label that is neither in 0..C-1 nor `IGNORED`.

    Example:
      >>> import numpy as np
      >>> check_labels(np.array([0, 3]), 3, "train")  # doctest: +ELLIPSIS
      Traceback (most recent call last):
        ...
      ValueError: labels of `train` must lie in 0..2 (3 classes), or be -1 at ...
    """
    if getattr(labels, "dtype", None) is None or labels.dtype.kind not in "iu" or not labels.size:
        return
    for found in (int(labels.max()), int(labels.min())):
        if found != IGNORED and (found < 0 or (classes and found >= classes)):
            allowed = f"lie in 0..{classes - 1} ({classes} classes)" if classes else "be at least 0"
            raise ValueError(
                f"labels of `{source}` must {allowed}, or be {IGNORED} at places that do not "
                f"count; got {found}"
                + ("; `ignore_label` marks another label as ignored" if found < 0 else "")
            )


def check_scored(labels: Any, score: Any, source: str) -> None:
    """Refuses labels that `score` cannot compare with classes.

    Args:
      labels: of any shape, on the host.
      score: a method's.
      source: where they come from, for the message.

    Raises:
      TypeError: labels that are not integers, with `exact` or `share`.
      ValueError: labels that hold a NaN.

    Example:
      >>> import numpy as np
      >>> check_scored(np.array([0.5]), exact, "experiment.train")  # doctest: +ELLIPSIS
      Traceback (most recent call last):
        ...
      TypeError: labels of `experiment.train` must be integers for `score` exact, ...
    """
    if score in (exact, share) and labels.dtype.kind not in "iu":
        raise TypeError(
            f"labels of `{source}` must be integers for `score` {score.__name__}, got "
            f"{labels.dtype}; a method for real labels has a `score` of its own"
        )
    if labels.dtype.kind == "f" and (labels != labels).any():
        raise ValueError(f"labels of `{source}` must not hold a NaN")


def _paired(prediction: Any, labels: Any) -> tuple[Any, Any]:
    if getattr(getattr(prediction, "dtype", None), "kind", "") == "b":
        prediction = prediction.astype("int32")
    prediction, labels = as_labels(prediction, name="prediction"), as_labels(labels)
    if prediction.shape != labels.shape:
        raise ValueError(
            "`prediction` must have the shape of `labels`, "
            f"got {prediction.shape} and {labels.shape}"
        )
    return prediction, labels


def _is_numpy(array: Any) -> bool:
    return type(array).__module__.partition(".")[0] == "numpy"


def _refuse_beyond_int32(labels: Any, name: str) -> None:
    if labels.size and (labels.max() > LARGEST or labels.min() < -LARGEST - 1):
        raise ValueError(
            f"`{name}` must lie in the range of int32, got {int(labels.min())}..{int(labels.max())}"
        )
