"""The mesh of devices: axes "data", "fsdp" and "model".

Rows of a batch are split over "data" and "fsdp". Parameters and optimizer state are split over
"fsdp", and over "model" where a rule names that axis; along "data" they are copied.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from jax.sharding import Mesh as DeviceMesh

from dynexit.core.settings import Mesh

AXES = ("data", "fsdp", "model")
ROWS = ("data", "fsdp")
AnyMesh: TypeAlias = DeviceMesh | AbstractMesh


def make_mesh(settings: Mesh | None = None, devices: Sequence[Any] | None = None) -> DeviceMesh:
    """The mesh that the settings describe, over all devices.

    Args:
      settings: sizes of the axes; None for the default, data parallelism.
      devices: None for all.

    Returns:
      A mesh with the axes "data", "fsdp" and "model", all of type `Auto`.

    Raises:
      ValueError: the product of the sizes is not the number of devices.

    Example:
      >>> dict(make_mesh(devices=jax.devices()[:1]).shape)
      {'data': 1, 'fsdp': 1, 'model': 1}
    """
    settings = Mesh() if settings is None else settings
    devices = jax.devices() if devices is None else list(devices)
    sizes = axis_sizes(settings, len(devices))
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def axis_sizes(settings: Mesh, count: int) -> tuple[int, int, int]:
    """Sizes of "data", "fsdp" and "model" on `count` devices.

    Raises:
      ValueError: their product is not `count`.

    Example:
      >>> axis_sizes(Mesh(fsdp=2), 8)
      (4, 2, 1)
    """
    rest = settings.fsdp * settings.model
    data = count // rest if settings.data is None else settings.data
    if data * rest == count:
        return data, settings.fsdp, settings.model
    sizes = f"fsdp {settings.fsdp} x model {settings.model}"
    if settings.data is None:
        raise ValueError(
            f"`mesh` has {sizes} = {rest} devices, which must divide the {count} devices there are"
        )
    raise ValueError(
        f"`mesh` has data {data} x {sizes} = {data * rest} devices, and there are {count}; "
        "data None takes all that the other axes leave"
    )


def row_axes(mesh: AnyMesh) -> tuple[str, ...]:
    """The axes of a mesh over which rows are split: those of "data" and "fsdp" that it has."""
    return tuple(axis for axis in ROWS if axis in mesh.shape)


def row_devices(mesh: AnyMesh) -> int:
    """The number of parts into which the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in row_axes(mesh))


def by_rows(mesh: AnyMesh) -> NamedSharding:
    """The sharding of arrays `[B, ...]` whose rows are split."""
    return NamedSharding(mesh, PartitionSpec(row_axes(mesh)))


def replicated(mesh: AnyMesh) -> NamedSharding:
    """The sharding of an array that is replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def in_words(mesh: AnyMesh) -> str:
    """The sizes of the axes.

    Example:
      >>> in_words(make_mesh(devices=jax.devices()[:1]))
      'data 1 x fsdp 1 x model 1'
    """
    return " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())


def check_batch_size(size: int, mesh: AnyMesh) -> None:
    """Refuses a batch that cannot be split evenly.

    Raises:
      ValueError: `size` is not a multiple of the devices over which rows are split.
    """
    devices = row_devices(mesh)
    if size % devices:
        near = max(devices, round(size / devices) * devices)
        raise ValueError(
            f"`batch_size` must be divisible by the {devices} devices that split its rows "
            f"({in_words(mesh)}), got {size}; the nearest is {near}"
        )
