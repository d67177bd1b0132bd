"""Which process holds a run folder, read without taking its lock."""

import json
import os
import socket
from pathlib import Path
from typing import NamedTuple

from dynexit.core.folder_lock import FILE


class Holder(NamedTuple):
    """The process that a lock file names.

    Attributes:
      process: its id.
      host: where it runs.
      started: when it took the folder, ISO 8601.
      alive: whether it runs; None where that cannot be known, on another host.
    """

    process: int
    host: str
    started: str
    alive: bool | None

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.started}"


def holder_of(folder: Path) -> Holder | None:
    """The holder of a run folder; None where no process holds it, or the file is not readable."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        process, host, started = int(found["process"]), str(found["host"]), str(found["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Holder(process, host, started, _runs(process) if host == socket.gethostname() else None)


def _runs(process: int) -> bool | None:
    if os.name != "posix" or process <= 0:
        return None
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return not _is_zombie(process)


def _is_zombie(process: int) -> bool:
    """Whether a process has ended and its parent has not read its exit code (Linux)."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return False
