"""Where the processes of a run are, as the cluster's environment says it."""

import os
from collections.abc import Mapping
from typing import NamedTuple


class Place(NamedTuple):
    """What a process must know to find the others.

    Attributes:
      coordinator: HOST:PORT of process 0.
      processes: how many there are.
      process: the number of this one.
      devices: the local devices that this process uses; None for all.
      source: who said so.
    """

    coordinator: str
    processes: int
    process: int
    devices: list[int] | None
    source: str


def several(environment: Mapping[str, str]) -> str | None:
    """Which cluster has started several processes, without doubt; None where none has.

    `srun` with more than one task; a TPU pod slice on Kubernetes with more than one worker; Open
    MPI's `mpirun` with more than one process. A batch script that only holds an allocation of
    several tasks is one process.

    Example:
      >>> several({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"})
      'SLURM'
      >>> several({"SLURM_NTASKS": "4"}) is None
      True
    """
    if "SLURM_PROCID" in environment and _number(environment, "SLURM_STEP_NUM_TASKS") > 1:
        return "SLURM"
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") and "TPU_WORKER_ID" in environment:
        return "TPU"
    if _number(environment, "MEGASCALE_NUM_SLICES") > 1:
        return "TPU"
    if _number(environment, "OMPI_COMM_WORLD_SIZE") > 1:
        return "Open MPI"
    return None


def detected(timeout: int, environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place of this process as JAX's own cluster detection finds it, or None.

    A TPU VM's metadata server is asked only on a TPU VM.

    Args:
      timeout: seconds to wait for the name of process 0's host.
      environment: for the name of the cluster.
    """
    from jax._src.clusters import ClusterEnv

    found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, timeout)
    coordinator, processes, process, devices = found
    if coordinator is None or processes is None or process is None:
        return None
    source = several(environment) or "the environment"
    return Place(coordinator, processes, process, None if devices is None else [*devices], source)


def on_tpu_pod() -> bool:
    """Whether this is a TPU VM of several workers, by its metadata server."""
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster

    try:
        return GceTpuCluster.is_env_present() and GceTpuCluster.get_process_count() > 1
    except Exception:  # no network, no metadata server, another form of the answer
        return False


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    return int(value) if value.isdigit() else 0
