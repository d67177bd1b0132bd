"""The options of several processes that train together, and how they are connected."""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dynexit.cli.options import Flag
from dynexit.runs.experiment_file import SettingsError

if TYPE_CHECKING:
    from dynexit.core.processes.cluster import Place
    from dynexit.core.processes.member import Member

MOST = 2**16

FLAGS = (
    Flag("coordinator", str | None, None, "HOST:PORT of process 0, for several processes"),
    Flag("processes", int | None, None, "how many processes train together"),
    Flag("process", int | None, None, "number of this process, 0..processes-1"),
    Flag("start_timeout", int, 300, "seconds until all processes must have come"),
    Flag(
        "distributed",
        bool,
        False,
        "read the three from the cluster; by default only under srun or mpirun with several tasks, "
        "and on a TPU pod",
    ),
)


def connect(options: Mapping[str, Any], log: Callable[[str], None]) -> "Member | None":
    """Connects this process with the others that the options or the environment name.

    Call it before anything starts a JAX backend.

    Returns:
      The process' place among them; None where it is alone.

    Raises:
      SettingsError: options that do not fit together, no cluster with `--distributed`, or an
        address where process 0 cannot listen.
      ProcessMissing: not all came in time.
    """
    place = place_of(options)
    if place is None or place.processes == 1:
        return None
    from dynexit.core.processes.start import join

    try:
        return join(place, float(options["start_timeout"]), log)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def place_of(options: Mapping[str, Any]) -> "Place | None":
    """The place that the options name, else the environment's, else None.

    Raises:
      SettingsError: see `connect`.
    """
    from dynexit.core.processes.cluster import Place, detected, on_tpu_pod, several

    timeout = options["start_timeout"]
    if timeout < 1:
        raise SettingsError(f"--start-timeout must be at least 1, got {timeout}")
    named = {name: options[name] for name in ("coordinator", "processes", "process")}
    missing = [f"--{name}" for name, value in named.items() if value is None]
    if not missing:
        coordinator, count, rank = named.values()
        if not 1 <= count <= MOST:
            raise SettingsError(f"--processes must lie in 1..{MOST}, got {count}")
        if not 0 <= rank < count:
            raise SettingsError(f"--process must lie in 0..{count - 1}, got {rank}")
        return Place(coordinator, count, rank, None, "options")
    if len(missing) < 3:
        raise SettingsError(
            f"{', '.join(missing)} must be given too: --coordinator HOST:PORT, --processes N and "
            "--process K belong together"
        )
    if not (options["distributed"] or several(os.environ) or on_tpu_pod()):
        return None
    place = detected(timeout)
    if place is None and options["distributed"]:
        raise SettingsError(
            "--distributed: no cluster is known here (SLURM, Open MPI, TPU, Kubernetes); give "
            "--coordinator HOST:PORT, --processes N and --process K"
        )
    return place
