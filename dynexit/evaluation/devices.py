"""Evaluation on several devices: every device runs the program of one device on a batch of its own.

Rows are split over the mesh inside `jax.shard_map`, so a device ends when the rows of its batch
have exited. Its batch is one that a single device would run too, padding rows included. Results
therefore do not depend on the number of devices.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dynexit.core.shapes import Int, PyTree, Rows
from dynexit.engine.collectives import compile_sharded

SHARE = 0.5  # of a device's memory, for parameters: the rest holds rows


@dataclasses.dataclass(frozen=True)
class Devices:
    """Where rows and parameters are.

    Attributes:
      mesh: None for one device.
      split: axes of the mesh along which parameters stay split, as they are, because a device
        cannot hold them whole. XLA inserts the sums along them (tensor parallelism), which changes
        rounding.
    """

    mesh: Mesh | None = None
    split: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[str, ...]:
        """The axes over which rows are split."""
        names = () if self.mesh is None else self.mesh.axis_names
        return tuple(name for name in names if name not in self.split)

    @property
    def count(self) -> int:
        """The number of batches that run at a time."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[name] for name in self.rows)

    def place(self, tree: PyTree) -> PyTree:
        """The arrays on every device; whole, except along the axes `split`."""
        if self.mesh is None:
            return tree
        mesh, kept = self.mesh, set(self.split)

        def placed(leaf: Any) -> NamedSharding:
            sharding = getattr(leaf, "sharding", None)
            spec = sharding.spec if isinstance(sharding, NamedSharding) else P()
            return NamedSharding(mesh, P(*(_only(entry, kept) for entry in spec)))

        return jax.device_put(tree, jax.tree.map(placed, tree))

    def batch(self, tree: Rows) -> Rows:
        """A host batch `[count x B, ...]`, `[B, ...]` on each device; others are unchanged."""
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, P(self.rows))
        put = lambda a: jax.make_array_from_callback(a.shape, sharding, lambda index: a[index])
        return jax.tree.map(lambda a: put(a) if isinstance(a, np.ndarray) else a, tree)

    def compile(
        self, f: Callable[[Any, Any], PyTree], axis: int = 0, whole: bool = True
    ) -> Callable[..., PyTree]:
        """`f(shared, rows)` as a program that runs on every device.

        Args:
          f: takes a tree that was placed and rows `[B, ...]`; its results have rows on `axis`.
          axis: of the rows in the results.
          whole: whether every device gets the results of all rows.

        Returns:
          A function of a placed tree and of a batch `[count x B, ...]`; it compiles at its first
          call.
        """
        if self.mesh is None:
            return jax.jit(f)
        spread = jax.shard_map(
            f,
            mesh=self.mesh,
            in_specs=(P(), P(self.rows)),
            out_specs=P(*[None] * axis, self.rows),
            axis_names=set(self.rows),
            check_vma=False,
        )
        run: Callable[..., Any] = _Read(spread) if self.split else jax.jit(spread)
        everywhere = NamedSharding(self.mesh, P())
        gather = jax.jit(lambda tree: tree, out_shardings=everywhere if whole else None)
        return lambda shared, rows: gather(run(shared, self.batch(rows)))


class _Read:
    """A function that is compiled at its first call for each shape, and whose program is read."""

    def __init__(self, f: Callable[..., PyTree]) -> None:
        self._f = f
        self._programs: dict[Any, jax.stages.Compiled] = {}

    def __call__(self, *args: PyTree) -> PyTree:
        kind = tuple((a.shape, a.dtype) for a in jax.tree.leaves(args))
        if kind not in self._programs:
            self._programs[kind] = compile_sharded(self._f, *args)
        return self._programs[kind](*args)


def devices_for(params: PyTree, mesh: Mesh | None) -> Devices:
    """How parameters are placed for evaluation.

    They are whole on every device where these can hold them; otherwise they stay split along
    "model".

    Args:
      params: arrays.
      mesh: as in training; None for one device.
    """
    if mesh is None or mesh.size == 1:
        return Devices()
    automatic = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)
    limit = memory_of(mesh.devices.flat[0])
    bytes = sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(params))
    fits = limit is None or bytes <= SHARE * limit
    split = () if fits or mesh.shape.get("model", 1) == 1 else ("model",)
    return Devices(automatic, split)


def memory_of(device: Any) -> int | None:
    """Bytes of a device's memory, or None where it does not say."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def kept_on(devices: Devices, kept: int, size: int) -> Int[np.ndarray, "D"]:
    """Rows that are not padding in the batch of every device.

    Args:
      devices: of the mesh.
      kept: rows that are not padding in all batches that run at a time.
      size: rows in each batch.

    Example:
      >>> kept_on(Devices(), 3, 4).tolist()
      [3]
    """
    return np.clip(kept - size * np.arange(devices.count), 0, size)


def _only(entry: Any, kept: set[str]) -> Any:
    axes = tuple(axis for axis in (entry if isinstance(entry, tuple) else (entry,)) if axis in kept)
    return axes or None
