"""The devices on which text is written."""

import math

import jax
from jax.sharding import Mesh as DeviceMesh

from dynexit.core.settings import Mesh
from dynexit.runs.experiment_file import SettingsError
from dynexit.training.parallel.mesh import make_mesh


def mesh_of(data: int | None, model: int) -> DeviceMesh | None:
    """A mesh of data x model of the first devices; None for one device.

    Args:
      data: groups that split the requests; None for all that there are.
      model: devices of a group, which split heads and inner widths.

    Raises:
      SettingsError: it has more devices than there are, or does not divide them.

    Example:
      >>> mesh_of(1, 1) is None
      True
    """
    devices = jax.devices()
    if data is not None:
        if data * model > len(devices):
            raise SettingsError(
                f"--mesh.data {data} x --mesh.model {model} are {data * model} devices, and there "
                f"are {len(devices)}"
            )
        devices = devices[: data * model]
    try:
        mesh = make_mesh(Mesh(data, 1, model), devices)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    return mesh if math.prod(mesh.shape.values()) > 1 else None
