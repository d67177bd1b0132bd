"""What training makes of the devices: FLOPs per second, their share of the peak, and memory."""

import dataclasses
from typing import TypeAlias

import jax
import jax.numpy as jnp

from dynexit.core.settings import Training
from dynexit.core.types import Experiment
from dynexit.training.monitoring.product_flops import product_flops
from dynexit.training.state import state_shapes
from dynexit.training.step import make_gradient

Readings: TypeAlias = dict[str, float]

# Peak FLOPs per second of one device, dense matrix products in bfloat16 (float16 where a device has
# no bfloat16), from the makers' data sheets; the first entry that `device_kind` begins with.
PEAKS = (
    ("TPU v2", 22.5e12),
    ("TPU v3", 61.5e12),
    ("TPU v4 lite", 138e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6", 918e12),
    ("NVIDIA B200", 2250e12),
    ("NVIDIA GH200", 989e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100 NVL", 835e12),
    ("NVIDIA H100", 989e12),
    ("NVIDIA A100", 312e12),
    ("NVIDIA L40S", 362e12),
    ("NVIDIA L4", 121e12),
    ("NVIDIA A10G", 70e12),
    ("NVIDIA A10", 125e12),
    ("NVIDIA GeForce RTX 4090", 165e12),
    ("NVIDIA GeForce RTX 3090", 71e12),
    ("Tesla V100", 125e12),
    ("Tesla T4", 65e12),
)


def peak_flops(device_kind: str) -> float | None:
    """Peak FLOPs per second of one device; None for one that is not in `PEAKS`.

    Example:
      >>> peak_flops("NVIDIA H100 80GB HBM3"), peak_flops("TPU v5 lite"), peak_flops("cpu")
      (989000000000000.0, 197000000000000.0, None)
    """
    return next((peak for kind, peak in PEAKS if device_kind.startswith(kind)), None)


def update_flops(experiment: Experiment, settings: Training) -> float:
    """Model FLOPs of one update over all devices: matrix products of the loss and its gradient.

    Recomputation (`Training.remat`) is not counted, and the body of a `while_loop` counts once; see
    `dynexit.training.monitoring.product_flops`. Nothing is computed or compiled.

    Args:
      experiment: model, method and the training split, of which one batch is read.
      settings: batch size and precision.
    """
    state = state_shapes(experiment, settings)
    drawn = experiment.train.batch(0, 0, settings.batch_size)
    inputs = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, drawn["inputs"]))
    labels = jax.eval_shape(lambda: jnp.asarray(drawn["labels"]))
    if experiment.augment is not None:
        inputs = jax.eval_shape(experiment.augment, state.key, inputs)
    if experiment.prepare is not None:
        inputs = jax.eval_shape(experiment.prepare, inputs)
    progress = jax.ShapeDtypeStruct((), jnp.float32)
    return product_flops(
        make_gradient(experiment, dataclasses.replace(settings, remat=False)),
        *(state.params, state.carry, inputs, labels, state.key, progress),
    )


class Throughput:
    """Readings for the records of training.

    Args:
      experiment, settings: as in `update_flops`, which is called at the first reading.
      devices: number of devices that train.
    """

    def __init__(self, experiment: Experiment, settings: Training, devices: int):
        self._experiment, self._settings, self._devices = experiment, settings, devices
        self._flops: float | None = None

    def read(self, examples_per_second: float) -> Readings:
        """The readings at a speed.

        Returns:
          `flops_per_second`, model FLOPs over all devices; `model_flops_utilisation`, as a fraction
          of the devices' peak, where it is known; `memory_peak_bytes`, the largest over the devices
          of this process, where they report it.
        """
        if self._flops is None:
            self._flops = update_flops(self._experiment, self._settings)
        speed = self._flops * examples_per_second / self._settings.batch_size
        found = {"flops_per_second": float(f"{speed:.4g}")}
        peak = peak_flops(jax.devices()[0].device_kind)
        if peak is not None:
            found["model_flops_utilisation"] = float(f"{speed / (peak * self._devices):.4g}")
        used = [(d.memory_stats() or {}).get("peak_bytes_in_use") for d in jax.local_devices()]
        if known := [bytes for bytes in used if bytes is not None]:
            found["memory_peak_bytes"] = float(max(known))
        return found
