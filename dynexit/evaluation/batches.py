"""A split read batch by batch, so that it may be larger than memory."""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from dynexit.core.shapes import Int, PyTree, Rows, Shaped
from dynexit.core.types import Experiment, Source

HASHED = 2**24  # bytes that are hashed at a time


class Batch(NamedTuple):
    """Rows of a split, the same number in every batch.

    Attributes:
      inputs: leaves `[own, ...]`, numpy, of the rows that were asked for.
      labels: `[own]` or `[own, ...]`, likewise.
      rows: indices of the rows in the split `[size]`, of which the first `kept` are not padding.
      kept: rows that are not padding; the last batch is padded with the first rows of the split.
    """

    inputs: Rows
    labels: Shaped[np.ndarray, "B ..."]
    rows: Int[np.ndarray, "B"]
    kept: int


def batches(
    examples: dict[str, Any], size: int, own: tuple[int, int] | None = None
) -> Iterator[Batch]:
    """Yields the examples in order, `size` at a time; arrays in a file are read in parts.

    Args:
      examples: of a split.
      size: rows of a batch.
      own: the first row of each batch that is read, and the one after the last; None for all.

    Example:
      >>> examples = {"inputs": np.arange(5.0), "labels": np.arange(5)}
      >>> [(b.labels.tolist(), b.kept) for b in batches(examples, 3)]
      [([0, 1, 2], 3), ([3, 4, 0], 2)]
      >>> [b.labels.tolist() for b in batches(examples, 3, (1, 3))]
      [[1, 2], [4, 0]]
    """
    count, (first, last) = len(examples["labels"]), own or (0, size)
    for start in range(0, count, size):
        rows = np.arange(start, start + size) % count
        whole = start + last <= count
        taken = slice(start + first, start + last) if whole else rows[first:last]
        inputs = taken_rows(examples["inputs"], taken)
        labels = np.asarray(examples["labels"][taken])
        yield Batch(inputs, labels, rows, min(size, count - start))


def taken_rows(tree: PyTree, rows: slice | Int[np.ndarray, "B"]) -> Rows:
    """Some rows of arrays `[M, ...]`, in memory."""
    return jax.tree.map(lambda a: np.asarray(a[rows]), tree)


def rows_of(source: Source) -> int:
    """M, the number of examples."""
    return len(source.examples()["labels"])


def prepared(experiment: Experiment, inputs: Rows) -> Rows:
    """The inputs after `experiment.prepare`, as the model takes them."""
    return experiment.prepare(inputs) if experiment.prepare is not None else inputs


def fingerprint(examples: dict[str, Any]) -> str:
    """sha256 of all arrays of the examples: equal splits have equal fingerprints."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(examples)[0]:
        array = leaf if isinstance(leaf, np.ndarray) else np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        if array.ndim == 0:
            digest.update(array.tobytes())
            continue
        rows = max(1, HASHED // max(1, array[:1].nbytes))
        for start in range(0, len(array), rows):
            digest.update(np.ascontiguousarray(array[start : start + rows]).tobytes())
    return digest.hexdigest()
