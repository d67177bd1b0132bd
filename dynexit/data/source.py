"""Sources over arrays in memory: a batch is a pure function of (seed, step, size), so the step is
the whole state.

No JAX is loaded by importing this module; building a `Source` loads `core.types`, and with it JAX.
"""

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from dynexit.core.types import Source

SPLITS = ("train", "calibration", "test")


class Splits(NamedTuple):
    """The three disjoint splits of a data set; unpacks as `train, calibration, test`."""

    train: "Source"
    calibration: "Source"
    test: "Source"


def from_arrays(split: str, inputs, labels) -> "Source":
    """A split over arrays in memory: shuffled epochs without replacement, one after the other.

    Args:
      split: "train", "calibration" or "test".
      inputs: `[n, ...]`, numpy or anything `np.asarray` takes; kept as it is, not copied.
      labels: integers `[n]`; kept as int32.

    Returns:
      A `Source` of size n. Its batches are `{"inputs": [size, ...], "labels": int32 [size]}`; a
      batch may straddle two epochs, and `size` may exceed n. `examples()` gives read-only views in
      the order of the arrays.

    Raises:
      ValueError: an unknown split, no examples, or lengths that differ; from `batch` a size, step
        or seed out of range.
      TypeError: labels that are not integers.

    Example:
      >>> source = from_arrays("train", np.arange(6.0)[:, None], np.arange(6))
      >>> sorted(source.batch(0, 0, 6)["labels"].tolist())
      [0, 1, 2, 3, 4, 5]
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}.")
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    if inputs.ndim == 0 or len(inputs) == 0:
        raise ValueError(
            f"`inputs` of split {split!r} must have at least one example, got shape {inputs.shape}."
        )
    if labels.shape != inputs.shape[:1]:
        raise ValueError(
            f"`labels` must have shape [{len(inputs)}], one for each of `inputs`, got {labels.shape}."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"`labels` must be integers, got {labels.dtype}.")
    return from_leaves(split, {"inputs": inputs, "labels": labels.astype(np.int32)})


def from_leaves(split: str, leaves: dict) -> "Source":
    """A split over any arrays of one length, as `from_arrays`: labels of any shape, and what else
    an example carries.

    Args:
      split: "train", "calibration" or "test".
      leaves: `{"inputs": [n, ...], "labels": [n, ...], ...}`, for a generated task also "steps",
        int32 `[n]`; kept as they are, not copied.

    Returns:
      A `Source` of size n whose batches have the same leaves, `[size, ...]`.

    Raises:
      ValueError: an unknown split, no "inputs" or "labels", no examples, or lengths that differ.

    Example:
      >>> source = from_leaves("test", {"inputs": np.zeros((6, 4)), "labels": np.zeros((6, 4), int), "steps": np.arange(6)})
      >>> {name: leaf.shape for name, leaf in source.batch(0, 0, 2).items()}
      {'inputs': (2, 4), 'labels': (2, 4), 'steps': (2,)}
    """
    from dynexit.core.types import Source

    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)}, got {split!r}.")
    whole = {name: np.asarray(leaf).view() for name, leaf in leaves.items()}
    if not {"inputs", "labels"} <= whole.keys():
        raise ValueError(
            f"`leaves` must have `inputs` and `labels`, got {', '.join(sorted(whole)) or 'none'}."
        )
    lengths = {leaf.shape[:1] for leaf in whole.values()}
    if len(lengths) > 1 or lengths <= {(), (0,)}:
        shapes = {name: leaf.shape for name, leaf in whole.items()}
        raise ValueError(
            f"`leaves` must all have the same number of examples, at least one, got shapes {shapes}."
        )
    for leaf in whole.values():
        leaf.flags.writeable = False
    count = len(whole["inputs"])

    def batch(seed: int, step: int, size: int) -> dict:
        rows = batch_indices(count, seed, step, size)
        return {name: leaf[rows] for name, leaf in whole.items()}

    return Source(split=split, batch=batch, examples=lambda: dict(whole), size=count)


def batch_indices(count: int, seed: int, step: int, size: int) -> np.ndarray:
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
      >>> np.array_equal(np.sort(np.concatenate([batch_indices(6, 0, step, 2) for step in range(3)])), np.arange(6))
      True
    """
    for name, value, low in (
        ("count", count, 1),
        ("seed", seed, 0),
        ("step", step, 0),
        ("size", size, 1),
    ):
        if value < low:
            raise ValueError(f"`{name}` must be at least {low}, got {value}.")
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
def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """A shuffle of `0..count-1`, int64 `[count]`, read-only; a pure function of its arguments."""
    order = np.random.Generator(
        np.random.Philox(key=np.array([seed, epoch], np.uint64))
    ).permutation(count)
    order.flags.writeable = False
    return order


def host_slice(batch: dict, index: int, count: int) -> dict:
    """The part of a global batch that host `index` of `count` feeds; the parts, one after the
    other, are the batch.

    Args:
      batch: leaves `[b, ...]`, the same on every host (batches are pure functions of seed and
        step).
      index: this host, 0..count-1, for instance `jax.process_index()`.
      count: hosts; must divide b.

    Returns:
      Leaves `[b / count, ...]`.

    Raises:
      ValueError: `index` outside 0..count-1, or b not a multiple of `count`.

    Example:
      >>> host_slice({"labels": np.arange(6)}, 1, 3)["labels"].tolist()
      [2, 3]
    """
    if not 0 <= index < count:
        raise ValueError(f"`index` must lie in 0..{count - 1}, got {index}.")
    sizes = {len(leaf) for leaf in batch.values()}
    if len(sizes) != 1 or next(iter(sizes)) % count:
        raise ValueError(
            f"`batch` must have leaves of one length that is a multiple of {count} hosts, got {sorted(sizes)}."
        )
    part = next(iter(sizes)) // count
    return {name: leaf[index * part : (index + 1) * part] for name, leaf in batch.items()}
