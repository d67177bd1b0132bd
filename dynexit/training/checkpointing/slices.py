"""Slices of arrays that are split over devices and processes.

A process saves what its devices hold as the first of all replicas, so that each element is saved
once. Slices that make up a box are saved as one: a process that holds a whole array saves it whole.
On restoring, the slices that a device needs are assembled from those that were saved, whatever the
numbers of devices and processes were.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dynexit.core.shapes import AnyArray, HostArray


class Box(NamedTuple):
    """A part of an array: its first element and its shape."""

    start: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


def box_of(index: Sequence[slice], shape: Sequence[int]) -> Box:
    """The box of an index, as of `Sharding.devices_indices_map`.

    Example:
      >>> box_of((slice(2, 4), slice(None)), (8, 3))
      Box(start=(2, 0), shape=(2, 3))
    """
    ends = [each.indices(size) for each, size in zip(index, shape, strict=True)]
    return Box(tuple(a for a, _, _ in ends), tuple(b - a for a, b, _ in ends))


def needed(leaf: Any) -> list[Box]:
    """The boxes that this process needs of an array; all of it where it has no sharding."""
    if not isinstance(leaf, jax.Array):
        return [Box((0,) * len(leaf.shape), tuple(leaf.shape))]
    indices = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
    return list(dict.fromkeys(box_of(index or (), leaf.shape) for index in indices))


def held(leaf: AnyArray) -> dict[Box, HostArray]:
    """The boxes that this process saves, and their values on the host.

    Example:
      >>> list(held(np.ones((2, 3))))
      [Box(start=(0, 0), shape=(2, 3))]
    """
    if not isinstance(leaf, jax.Array) or jax.process_count() == 1:
        return {Box((0,) * np.ndim(leaf), np.shape(leaf)): np.asarray(leaf)}
    shards = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
    return joined({box_of(s.index, leaf.shape): np.asarray(s.data) for s in shards})


def joined(boxes: dict[Box, HostArray]) -> dict[Box, HostArray]:
    """Disjoint boxes as one, if they fill the smallest box around them.

    Example:
      >>> halves = {Box((0, 0), (1, 3)): np.zeros((1, 3)), Box((1, 0), (1, 3)): np.ones((1, 3))}
      >>> list(joined(halves))
      [Box(start=(0, 0), shape=(2, 3))]
    """
    if len(boxes) < 2:
        return boxes
    ends = [[s + n for s, n in zip(*box, strict=True)] for box in boxes]
    start = tuple(map(min, zip(*(box.start for box in boxes), strict=True)))
    end = tuple(map(max, zip(*ends, strict=True)))
    around = Box(start, tuple(b - a for a, b in zip(start, end, strict=True)))
    if around.size != sum(box.size for box in boxes):
        return boxes
    return {around: assembled(around, boxes.items(), next(iter(boxes.values())).dtype)}


def overlap(a: Box, b: Box) -> Box | None:
    """What two boxes share, or None.

    Example:
      >>> overlap(Box((0,), (4,)), Box((3,), (4,))), overlap(Box((0,), (2,)), Box((2,), (2,)))
      (Box(start=(3,), shape=(1,)), None)
    """
    start = tuple(map(max, zip(a.start, b.start, strict=True))) if a.start else ()
    ends = [[s + n for s, n in zip(*box, strict=True)] for box in (a, b)]
    shape = tuple(min(p, q) - s for p, q, s in zip(*ends, start, strict=True))
    return None if any(n <= 0 for n in shape) else Box(start, shape)


def assembled(box: Box, pieces: Iterable[tuple[Box, HostArray]], dtype: np.dtype) -> HostArray:
    """The values of a box, from disjoint pieces.

    Raises:
      LookupError: the pieces do not cover it.

    Example:
      >>> pieces = [(Box((0,), (2,)), np.array([1, 2])), (Box((2,), (2,)), np.array([3, 4]))]
      >>> assembled(Box((1,), (2,)), pieces, np.dtype(int)).tolist()
      [2, 3]
    """
    found, filled = np.empty(box.shape, dtype), 0
    for at, values in pieces:
        if at == box:
            return values
        if (shared := overlap(box, at)) is not None:
            found[_within(shared, box)] = values[_within(shared, at)]
            filled += shared.size
    if filled != box.size:
        raise LookupError(f"{box.size - filled} of {box.size} elements from {list(box.start)} on")
    return found


def _within(part: Box, whole: Box) -> tuple[slice, ...]:
    """The index of a box within a larger one."""
    return tuple(
        slice(p - w, p - w + n) for p, w, n in zip(part.start, whole.start, part.shape, strict=True)
    )
