"""Sources over arrays in memory; loads no JAX.

A batch is a pure function of (seed, step, size), so the step is the whole state.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from dynexit.core.data import SPLITS, Source
from dynexit.core.labels import as_labels, check_labels
from dynexit.data.host_shapes import Int

Batch: TypeAlias = dict[str, Any]  # "inputs", "labels" and others, leaves `[b, ...]`


def from_arrays(split: str, inputs: Any, labels: Any, ignore_label: int | None = None) -> Source:
    """A split over arrays in memory: shuffled epochs without replacement, one after the other.

    Args:
      split: "train", "calibration" or "test".
      inputs: `[n, ...]`, numpy or anything `np.asarray` takes, or a dict of such arrays (for
        example tokens and a mask); kept as they are, not copied.
      labels: integers `[n]`; kept as int32.
      ignore_label: a label that no loss and no score counts, for example -100 of PyTorch.

    Returns:
      A `Source` of size n. Its batches are `{"inputs": [size, ...], "labels": int32 [size]}`; a
      batch may straddle two epochs, and `size` may exceed n. `examples()` gives read-only views in
      the order of the arrays.

    Raises:
      ValueError: an unknown split, no examples, or lengths that differ; labels below 0 other than
        -1; from `batch` a size, step or seed out of range.
      TypeError: labels that are not integers.

    Example:
      >>> source = from_arrays("train", np.arange(6.0)[:, None], np.arange(6))
      >>> sorted(source.batch(0, 0, 6)["labels"].tolist())
      [0, 1, 2, 3, 4, 5]
      >>> tokens = {"tokens": np.zeros((6, 4), int), "mask": np.ones((6, 4), bool)}
      >>> from_arrays("test", tokens, np.arange(6)).batch(0, 0, 2)["inputs"]["mask"].shape
      (2, 4)
    """
    _check_split(split)
    inputs, labels = _each(np.asarray, inputs), as_labels(np.asarray(labels), ignore_label)
    leaves = _leaves(inputs)
    counts = {leaf.shape[:1] for leaf in leaves}
    if len(counts) != 1 or counts <= {(), (0,)}:
        raise ValueError(
            f"`inputs` of split {split!r} must have at least one example, and each array as many, "
            f"got {_shapes(inputs)}"
        )
    if labels.shape != leaves[0].shape[:1]:
        raise ValueError(
            f"`labels` must have shape [{len(leaves[0])}], one for each of `inputs`, "
            f"got {labels.shape}"
        )
    return from_leaves(split, {"inputs": inputs, "labels": labels})


def from_leaves(split: str, leaves: Batch, ignore_label: int | None = None) -> Source:
    """A split over any arrays of one length, as `from_arrays`.

    Labels have any shape, and examples may have other leaves.

    Args:
      split: "train", "calibration" or "test".
      leaves: `{"inputs": [n, ...], "labels": [n, ...], ...}`; inputs may be a dict of arrays. Other
        leaves stay on the host: ids of the rows, or "steps" of a generated task, int32 `[n]`.
        Labels that are integers become int32; all else is kept as it is, not copied.
      ignore_label: as in `from_arrays`.

    Returns:
      A `Source` of size n whose batches have the same leaves, `[size, ...]`.

    Raises:
      ValueError: an unknown split, no "inputs" or "labels", no examples, or lengths that differ;
        labels below 0 other than -1.

    Example:
      >>> leaves = {"inputs": np.zeros((6, 4)), "labels": np.zeros((6, 4), int)}
      >>> leaves["id"] = list("abcdef")
      >>> source = from_leaves("test", leaves)
      >>> {name: leaf.shape for name, leaf in source.batch(0, 0, 2).items()}
      {'inputs': (2, 4), 'labels': (2, 4), 'id': (2,)}
    """
    _check_split(split)
    if not {"inputs", "labels"} <= leaves.keys():
        raise ValueError(
            f"`leaves` must have `inputs` and `labels`, got {', '.join(sorted(leaves)) or 'none'}"
        )
    whole = _each(lambda leaf: np.asarray(leaf).view(), dict(leaves))
    whole["labels"] = _checked(whole["labels"], ignore_label, split)
    lengths = {leaf.shape[:1] for leaf in _leaves(whole)}
    if len(lengths) > 1 or lengths <= {(), (0,)}:
        raise ValueError(
            "`leaves` must all have the same number of examples, at least one, "
            f"got shapes {_shapes(whole)}"
        )
    for leaf in _leaves(whole):
        leaf.flags.writeable = False
    count = len(whole["labels"])

    examples = lambda: _each(lambda leaf: leaf, whole)
    return Source(split, _ArrayBatches(whole), examples, count)


class _ArrayBatches(NamedTuple):
    """`batch` of a source over arrays, which also reads some rows of a batch alone."""

    whole: Batch

    def __call__(self, seed: int, step: int, size: int) -> Batch:
        return self.rows(seed, step, size, 0, size)

    def rows(self, seed: int, step: int, size: int, first: int, last: int) -> Batch:
        chosen = batch_indices(len(self.whole["labels"]), seed, step, size)[first:last]
        return _each(lambda leaf: leaf[chosen], self.whole)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}")


def _checked(labels: np.ndarray, ignore_label: int | None, split: str) -> np.ndarray:
    """int32 labels without those that are neither a class nor ignored; real ones as they are."""
    if labels.dtype.kind not in "iu":
        if ignore_label is not None or labels.dtype.kind not in "f":
            raise TypeError(f"`labels` must be integers, got {labels.dtype}")
        return labels
    labels = as_labels(labels, ignore_label).view()
    check_labels(labels, 0, split)
    return labels


def _each(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same tree of dicts with `function` of every leaf."""
    if isinstance(tree, dict):
        return {name: _each(function, leaf) for name, leaf in tree.items()}
    return function(tree)


def _leaves(tree: Any) -> list[np.ndarray]:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in _leaves(value)]
    return [tree]


def _shapes(tree: Any) -> Any:
    return _each(lambda leaf: leaf.shape, tree)


def batch_indices(count: int, seed: int, step: int, size: int) -> Int[np.ndarray, "size"]:
    """The rows of batch `step`: positions `step * size ...` of an endless row of shuffled epochs.

    Epoch e is the permutation of `0..count-1` drawn from Philox with the key (seed, e): nothing
    before it need be drawn, so any step is reached at once.

    Args:
      count: examples per epoch.
      seed, step: integers from 0.
      size: rows wanted, from 1.

    Returns:
      int64 `[size]`; every example comes exactly once per epoch.

    Raises:
      ValueError: `count` or `size` below 1, `seed` or `step` below 0.

    Example:
      >>> epoch = np.concatenate([batch_indices(6, 0, step, 2) for step in range(3)])
      >>> np.array_equal(np.sort(epoch), np.arange(6))
      True
    """
    for name, value, low in (
        ("count", count, 1),
        ("seed", seed, 0),
        ("step", step, 0),
        ("size", size, 1),
    ):
        if value < low:
            raise ValueError(f"`{name}` must be at least {low}, got {value}")
    count, seed, step, size = int(count), int(seed), int(step), int(size)
    first, last = step * size, (step + 1) * size
    parts = []
    for epoch in range(first // count, (last - 1) // count + 1):
        begin = epoch * count
        parts.append(permutation(count, seed, epoch)[max(first - begin, 0) : last - begin])
    return np.concatenate(parts)


@functools.lru_cache(
    maxsize=8
)  # an epoch is drawn once and read by many batches; calibration and train may alternate
def permutation(count: int, seed: int, epoch: int) -> Int[np.ndarray, "count"]:
    """A shuffle of `0..count-1`, int64 `[count]`, read-only; a pure function of its arguments."""
    order = np.random.Generator(
        np.random.Philox(key=np.array([seed, epoch], np.uint64))
    ).permutation(count)
    order.flags.writeable = False
    return order


def part(source: Source, seed: int, step: int, size: int, first: int, last: int) -> Batch:
    """Rows first..last-1 of a batch: what one of several hosts feeds.

    Where `source.batch` has a method `rows`, as that of a source over arrays, it gives these rows
    alone. Otherwise the batch is drawn and the others are dropped.

    Args:
      source: the split.
      seed, step, size: of the batch.
      first, last: of the rows, from 0.

    Returns:
      Leaves `[last - first, ...]`.

    Example:
      >>> source = from_arrays("train", np.arange(6.0)[:, None], np.arange(6))
      >>> batch = source.batch(0, 0, 6)["labels"].tolist()
      >>> part(source, 0, 0, 6, 2, 4)["labels"].tolist() == batch[2:4]
      True
    """
    rows = getattr(source.batch, "rows", None)
    if rows is not None:
        return rows(seed, step, size, first, last)
    return _each(lambda leaf: leaf[first:last], source.batch(seed, step, size))


def mapped(source: Source, change: Callable[[Batch], Batch]) -> Source:
    """The source with every batch changed by a function that treats each row alone.

    Args:
      source: the split.
      change: of leaves `[b, ...]`.

    Example:
      >>> source = from_arrays("train", np.arange(6.0)[:, None], np.arange(6))
      >>> twice = mapped(source, lambda batch: {**batch, "labels": 2 * batch["labels"]})
      >>> twice.examples()["labels"].tolist()
      [0, 2, 4, 6, 8, 10]
    """
    return source._replace(
        batch=_Mapped(source, change), examples=functools.cache(lambda: change(source.examples()))
    )


class _Mapped(NamedTuple):
    source: Source
    change: Callable[[Batch], Batch]

    def __call__(self, seed: int, step: int, size: int) -> Batch:
        return self.change(self.source.batch(seed, step, size))

    def rows(self, seed: int, step: int, size: int, first: int, last: int) -> Batch:
        return self.change(part(self.source, seed, step, size, first, last))
