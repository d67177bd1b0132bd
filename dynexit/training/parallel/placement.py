"""Places parameters, optimizer state and batches on a mesh.

Several processes: a batch is a pure function of seed and step; each process places its own rows.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from dynexit.core.labels import as_labels
from dynexit.core.shapes import AnyArray, Array, PyTree, Rows, Shaped
from dynexit.data.source import Batch
from dynexit.training.optimizer import path_name
from dynexit.training.parallel.mesh import (
    AnyMesh,
    by_rows,
    check_batch_size,
    replicated,
    row_devices,
)
from dynexit.training.parallel.rules import Rules, named_axes, spec_of


def shardings(params: PyTree, mesh: AnyMesh, rules: Rules = ()) -> PyTree:
    """One sharding per parameter, by the rules (see `rules.py`).

    Args:
      params: arrays or their shapes.
      mesh: the devices.
      rules: pairs (regular expression, `PartitionSpec` of the last axes).

    Raises:
      ValueError: a rule that does not fit the parameter it matches, which is named; or an axis
        "fsdp" or "model" of several devices that splits no parameter.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = [path_name(path) for path, _ in leaves]
    specs = [
        spec_of(name, leaf.shape, mesh, rules, names)
        for name, (_, leaf) in zip(names, leaves, strict=True)
    ]
    for axis in ("fsdp", "model"):
        if mesh.shape.get(axis, 1) > 1 and not any(axis in named_axes(spec) for spec in specs):
            largest, leaf = max(
                zip(names, (leaf for _, leaf in leaves), strict=True), key=lambda pair: pair[1].size
            )
            raise ValueError(
                f"`mesh`: the axis {axis!r} of {mesh.shape[axis]} devices splits no parameter; the "
                f"largest is {largest}, whose shape is {list(leaf.shape)}"
            )
    placed = [NamedSharding(mesh, spec) for spec in specs]
    return jax.tree.unflatten(jax.tree.structure(params), placed)


def drawn(params: PyTree, placed: PyTree) -> PyTree:
    """Shardings in which parameters are drawn, before they move to `placed`.

    A kernel `[D, 3, heads, d]` is drawn as a matrix `[D, 3 heads d]`. A part of its heads is no
    part of the matrix, so each device would draw the whole. It is drawn with its largest free axis
    split in place of the heads.
    """

    def draw(leaf: Any, sharding: NamedSharding) -> NamedSharding:
        spec = list(sharding.spec)
        if "model" not in spec[:-1]:
            return sharding
        heads, size = spec.index("model"), sharding.mesh.shape["model"]
        free = [k for k in range(1, len(spec)) if spec[k] is None and leaf.shape[k] % size == 0]
        if not free:
            return sharding
        spec[heads], spec[max(free, key=lambda k: leaf.shape[k])] = None, "model"
        return NamedSharding(sharding.mesh, PartitionSpec(*spec))

    return jax.tree.map(draw, params, placed)


def like_params(tree: PyTree, params: PyTree, placed: PyTree, mesh: AnyMesh) -> PyTree:
    """Shardings of an optimizer's state: a moment goes where its parameter does.

    Args:
      tree: shapes of the state. The path of a moment ends in that of its parameter.
      params: shapes of the parameters.
      placed: their shardings.
      mesh: the devices.

    Returns:
      One sharding per leaf of `tree`; what is no moment, such as a counter, is replicated.
    """
    where = {
        path_name(path): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(placed), strict=True
        )
    }

    def place(path: Sequence[Any], leaf: Any) -> Sharding:
        parts = path_name(path).split("/")
        tails = ("/".join(parts[k:]) for k in range(len(parts)))
        shape, sharding = next((where[tail] for tail in tails if tail in where), ((), None))
        return sharding if sharding is not None and shape == leaf.shape else replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, tree)


def carried(tree: PyTree, rows: int, mesh: AnyMesh) -> PyTree:
    """Shardings of rows that stay from update to update: leaves `[rows, ...]` are split by rows."""
    split = by_rows(mesh) if rows % row_devices(mesh) == 0 else replicated(mesh)
    return jax.tree.map(lambda a: split if a.shape[:1] == (rows,) else replicated(mesh), tree)


def put(array: Shaped[np.ndarray, "*shape"], sharding: Sharding) -> Shaped[Array, "*shape"]:
    """Places a host array that every process has; each process transfers its own part."""
    return jax.make_array_from_callback(np.shape(array), sharding, lambda index: array[index])


def own_rows(size: int, mesh: Mesh) -> tuple[int, int]:
    """The first row of a batch that this process' devices hold, and the one after the last."""
    places = by_rows(mesh).addressable_devices_indices_map((size,))
    ranges = [index[0].indices(size) for index in places.values() if index is not None]
    return min(start for start, _, _ in ranges), max(stop for _, stop, _ in ranges)


def put_batch(
    batch: Batch,
    mesh: Mesh,
    names: Sequence[str] = ("inputs", "labels"),
    first: int = 0,
    size: int | None = None,
) -> dict[str, Rows]:
    """What a step reads of a host batch, leaves `[B, ...]`, split by rows over "data" and "fsdp".

    Args:
      batch: leaves `[B, ...]`, or of some rows, those of `own_rows` among them.
      mesh: from `make_mesh`.
      names: the leaves that the step reads; others, such as ids of the rows, stay on the host.
      first: the first row in `batch`.
      size: B; None where `batch` has all rows.

    Returns:
      The leaves `names` on the devices; labels that are integers as int32.

    Raises:
      ValueError: the rows cannot be split evenly over the devices.
      TypeError: a leaf of a type that no device has, such as strings; the leaf is named.
    """
    labels = np.asarray(batch["labels"])
    if labels.dtype.kind in "iu":
        labels = as_labels(labels)

    def place(path: Sequence[Any], leaf: Any) -> Array:
        leaf = np.asarray(leaf)
        if leaf.dtype.kind in "OSUMmT":
            raise TypeError(f"`{path_name(path)}` must be numbers, got {leaf.dtype}")
        count = len(leaf) if size is None else size
        check_batch_size(count, mesh)

        def on_device(index: Any) -> Shaped[np.ndarray, "..."]:
            start, stop, _ = index[0].indices(count)
            return leaf[start - first : stop - first]

        return jax.make_array_from_callback((count, *leaf.shape[1:]), by_rows(mesh), on_device)

    read = {name: labels if name == "labels" else batch[name] for name in names}
    return jax.tree_util.tree_map_with_path(place, read)


def whole(tree: PyTree) -> PyTree:
    """Arrays that are split over devices, whole on the first device of every process.

    All processes must call it. Each leaf is gathered on its own.
    """

    def gather(given: AnyArray) -> Array:
        array: Array = jnp.asarray(given)
        if not array.is_fully_replicated:
            mesh: Any = getattr(array.sharding, "mesh", None)
            array = jax.jit(lambda a: a, out_shardings=replicated(mesh))(array)
        return array.addressable_data(0)

    return jax.tree.map(gather, tree)
