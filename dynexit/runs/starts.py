"""`start.json`: the last start of a run, by which all processes confirm that they share its folder.

It also says on which devices and by which JAX the run was trained before.
"""

import datetime
import json
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynexit.core.processes.start import broadcast, current
from dynexit.runs.experiment_file import SettingsError
from dynexit.runs.run_folder import write_json

FILE = "start.json"
WAIT = 15.0
"""Seconds in which a file that process 0 has written must be seen by the others."""


def record(folder: Path, log: Callable[[str], None]) -> str:
    """Process 0 writes `start.json`; what differs from the start before is logged.

    Returns:
      The start's id.
    """
    import jax

    member = current()
    devices = jax.devices()
    own = {
        "jax": jax.__version__,
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "processes": 1 if member is None else len(member.processes),
    }
    before = _read(folder / FILE)
    changed = [
        f"{name} {before[name]} before, {value} now"
        for name, value in own.items()
        if before.get(name, value) != value
    ]
    if changed:
        log(f"this run was trained with {'; '.join(changed)}: its bits may differ from here on")
    start = secrets.token_hex(8)
    hosts = [socket.gethostname()] if member is None else [p.host for p in member.processes]
    began = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    write_json(folder / FILE, {"id": start, **own, "hosts": hosts, "time": began})
    return start


def confirm_shared(folder: Path, start: str | None) -> None:
    """All processes confirm that they see the folder of process 0.

    Args:
      folder: as this process names it.
      start: from `record` on process 0.

    Raises:
      SettingsError: on all processes; those that do not see it are named with their hosts.
    """
    member = current()
    if member is None:
        return
    start = broadcast(start, "run folder", timeout=None)
    end = time.monotonic() + WAIT
    while not (seen := _read(folder / FILE).get("id") == start) and time.monotonic() < end:
        time.sleep(0.2)
    confirmed = member.exchange("the run folder is seen", seen, timeout=2 * WAIT)
    without = [str(p) for p, sees in zip(member.processes, confirmed, strict=True) if not sees]
    if without:
        raise SettingsError(
            f"the run folder {folder} is not shared: {', '.join(without)} does not see what "
            f"{member.processes[0]} wrote there; name a folder that all hosts share with --run"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
