"""Data parallelism: the batch is split over all devices; parameters are replicated unless a rule
over their paths shards them.

Several processes: every process draws the same host batch (it is a pure function of seed and step)
and places its own rows.
"""

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from dynexit.core.labels import as_labels
from dynexit.core.shapes import Array, PyTree, Rows, Shaped
from dynexit.data.source import Batch
from dynexit.training.optimizer import path_name

Rules: TypeAlias = Sequence[tuple[str, PartitionSpec]]


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of one axis, "data", over `devices` (all of them by default)."""
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def check_batch_size(size: int, mesh: Mesh) -> None:
    """Refuses a batch that cannot be split evenly.

    Raises:
      ValueError: `size` is not a multiple of the number of devices on the "data" axis.
    """
    devices = mesh.shape["data"]
    if size % devices:
        near = max(devices, round(size / devices) * devices)
        raise ValueError(
            f"`batch_size` must be divisible by the {devices} devices of the mesh, got {size}; "
            f"the nearest is {near}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that is replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shardings(tree: PyTree, mesh: Mesh, rules: Rules = ()) -> PyTree:
    """One sharding per leaf: that of the first rule whose regular expression is found in the leaf's
    path, or replicated.

    Paths of optimizer moments end in their parameter's path, so one rule places all three.

    Args:
      tree: arrays or their shapes.
      mesh: the devices.
      rules: pairs (regular expression, `PartitionSpec`).

    Raises:
      ValueError: a spec has more axes than the leaf it matched.
    """

    def place(path: Sequence[Any], leaf: Any) -> NamedSharding:
        name = path_name(path)
        for pattern, spec in rules:
            if re.search(pattern, name):
                if len(spec) > len(leaf.shape):
                    raise ValueError(
                        f"`rules`: {pattern!r} gives {spec} to {name}, whose shape is only "
                        f"{list(leaf.shape)}"
                    )
                return NamedSharding(mesh, spec)
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, tree)


def put(array: Shaped[np.ndarray, "*shape"], sharding: Sharding) -> Shaped[Array, "*shape"]:
    """Places a host array that every process has; each process transfers its own part."""
    return jax.make_array_from_callback(np.shape(array), sharding, lambda index: array[index])


def put_batch(
    batch: Batch, mesh: Mesh, names: Sequence[str] = ("inputs", "labels")
) -> dict[str, Rows]:
    """What a step reads of a host batch, leaves `[B, ...]`, split by rows over the "data" axis.

    Args:
      batch: leaves `[B, ...]`.
      mesh: with an axis "data".
      names: the leaves that the step reads; others, such as ids of the rows, stay on the host.

    Returns:
      The leaves `names` on the devices; labels that are integers as int32.

    Raises:
      ValueError: the rows cannot be split evenly over the devices.
      TypeError: a leaf of a type that no device has, such as strings; the leaf is named.
    """
    rows = NamedSharding(mesh, PartitionSpec("data"))
    labels = np.asarray(batch["labels"])
    if labels.dtype.kind in "iu":
        labels = as_labels(labels)

    def place(path: Sequence[Any], leaf: Any) -> Array:
        leaf = np.asarray(leaf)
        if leaf.dtype.kind in "OSUMmT":
            raise TypeError(f"`{path_name(path)}` must be numbers, got {leaf.dtype}")
        check_batch_size(len(leaf), mesh)
        return put(leaf, rows)

    read = {name: labels if name == "labels" else batch[name] for name in names}
    return jax.tree_util.tree_map_with_path(place, read)
