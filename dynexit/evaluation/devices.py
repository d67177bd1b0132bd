"""Evaluation on several devices: every device runs the program of one device on a batch of its own.

Rows are split over the mesh inside `jax.shard_map`, so a device ends when the rows of its batch
have exited. Its batch is one that a single device would run too, padding rows included. Results
therefore do not depend on the number of devices. The devices may be those of several processes:
each reads the rows of its own devices, and all get the results.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dynexit.core.processes.together import agreed, from_first, nothing
from dynexit.core.shapes import Array, Int, PyTree, Rows
from dynexit.engine.collectives import compile_sharded

SHARE = 0.5  # of a device's memory, for parameters: the rest holds rows
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Devices:
    """Where rows and parameters are.

    Attributes:
      mesh: None for one device.
      split: axes of the mesh along which parameters stay split, as they are, because a device
        cannot hold them whole. All devices along them run the same rows. XLA inserts the sums along
        them (tensor parallelism), which changes rounding.
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

    @property
    def together(self) -> bool:
        """Whether the devices are those of several processes, which all make the same calls."""
        return _together(self.mesh)

    @property
    def first(self) -> bool:
        """Whether this process is the one that measures time and writes."""
        return not self.together or jax.process_index() == 0

    def from_first(
        self, make: Callable[[], T], what: str, log: Callable[[str], None] = nothing
    ) -> T:
        """`make()` of process 0, see `processes.together.from_first`."""
        return from_first(make, what, log) if self.together else make()

    def agreed(self, tree: PyTree, what: str) -> PyTree:
        """The small arrays of process 0, see `processes.together.agreed`."""
        return agreed(tree, what) if self.together else tree

    def own(self, size: int) -> tuple[int, int]:
        """The rows of a batch that this process reads: the first one, and the one after the last.

        Args:
          size: rows of a batch on all devices, a multiple of `count`.
        """
        if self.mesh is None:
            return 0, size
        where = NamedSharding(self.mesh, P(self.rows))
        places = where.addressable_devices_indices_map((size,)).values()
        ranges = [index[0].indices(size) for index in places if index is not None]
        return min(start for start, _, _ in ranges), max(stop for _, stop, _ in ranges)

    def place(self, tree: PyTree) -> PyTree:
        """The arrays on every device; whole, except along the axes `split`."""
        if self.mesh is None:
            return tree
        mesh, kept = self.mesh, set(self.split)

        def placed(leaf: Any) -> Array:
            sharding = getattr(leaf, "sharding", None)
            spec = sharding.spec if isinstance(sharding, NamedSharding) else P()
            where = NamedSharding(mesh, P(*(_only(entry, kept) for entry in spec)))
            if not self.together or not getattr(leaf, "is_fully_addressable", True):
                return jax.device_put(leaf, where)
            # every process has the same values: JAX would send them all to compare them
            held = np.asarray(jnp.asarray(leaf))
            return jax.make_array_from_callback(held.shape, where, lambda index: held[index])

        return jax.tree.map(placed, tree)

    def batch(self, tree: Rows) -> Rows:
        """This process' rows of a batch `[count x B, ...]`, `[B, ...]` on each device.

        Args:
          tree: numpy leaves, of the rows `own`; others are unchanged.
        """
        if self.mesh is None:
            return tree
        sharding = NamedSharding(self.mesh, P(self.rows))
        begin, end = self.own(self.count)

        def put(rows: Any) -> Any:
            if not isinstance(rows, np.ndarray):
                return rows
            each = len(rows) // (end - begin)
            count, first = each * self.count, each * begin

            def part(index: Any) -> np.ndarray:
                start, stop, _ = index[0].indices(count)
                return rows[start - first : stop - first]

            return jax.make_array_from_callback((count, *rows.shape[1:]), sharding, part)

        return jax.tree.map(put, tree)

    def compile(
        self, f: Callable[[Any, Any], PyTree], axis: int = 0, whole: bool = True
    ) -> Callable[..., PyTree]:
        """`f(shared, rows)` as a program that runs on every device.

        Args:
          f: takes a tree that was placed and rows `[B, ...]`; its results have rows on `axis`.
          axis: of the rows in the results.
          whole: whether every device gets the results of all rows.

        Returns:
          A function of a placed tree and of this process' rows of a batch `[count x B, ...]`; it
          compiles at its first call.
        """
        if self.mesh is None:
            return jax.jit(f)
        spread = f
        if self.rows:
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


def devices_for(params: PyTree, mesh: Mesh | None, share: float = SHARE) -> Devices:
    """How parameters are placed for evaluation.

    They are whole on every device where these can hold them. Otherwise they stay split along as few
    of the axes that split them as possible.

    Args:
      params: arrays.
      mesh: as in training; None for one device.
      share: of a device's memory, which the parameters may take; 0 leaves them as they are.
    """
    if mesh is None or mesh.size == 1:
        return Devices()
    automatic = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)
    leaves = jax.tree.leaves(params)
    axes = [_axes(leaf, automatic) for leaf in leaves]
    used = [name for name in mesh.axis_names if any(name in each for each in axes)]
    # few devices first: rows are split over the others
    splits = sorted(
        itertools.chain(*(itertools.combinations(used, n) for n in range(len(used) + 1))),
        key=lambda split: math.prod(mesh.shape[name] for name in split),
    )

    def bytes(split: tuple[str, ...]) -> float:
        parts = [math.prod(mesh.shape[a] for a in each if a in split) for each in axes]
        return sum(leaf.nbytes / part for leaf, part in zip(leaves, parts, strict=True))

    limit = 0 if share == 0 else _limit(automatic)
    fits = (split for split in splits if limit is None or bytes(split) <= share * limit)
    return Devices(automatic, next(fits, splits[-1]))


def mesh_of(params: PyTree) -> Mesh | None:
    """The mesh of several devices that parameters are on, or None."""
    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(params))
    meshes = (each.mesh for each in shardings if isinstance(each, NamedSharding))
    return next((m for m in meshes if isinstance(m, Mesh) and m.size > 1), None)


def memory_of(device: Any) -> int | None:
    """Bytes of a device's memory, or None where it does not say."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def _limit(mesh: Mesh) -> int | None:
    """The memory of a device of process 0."""
    measure = lambda: memory_of(mesh.local_mesh.devices.flat[0])
    return from_first(measure, "reads its memory") if _together(mesh) else measure()


def _together(mesh: Mesh | None) -> bool:
    return mesh is not None and len({d.process_index for d in mesh.devices.flat}) > 1


def _axes(leaf: Any, mesh: Mesh) -> set[str]:
    """The axes of several devices that split an array."""
    sharding = getattr(leaf, "sharding", None)
    spec = sharding.spec if isinstance(sharding, NamedSharding) else P()
    names = itertools.chain(*(e if isinstance(e, tuple) else (e,) for e in spec))
    return {name for name in names if mesh.shape.get(name, 1) > 1}


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
