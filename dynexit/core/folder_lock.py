"""One process at a time trains in a run folder."""

import contextlib
import datetime
import json
import os
import socket
import time
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

from dynexit.core.files import lock

FILE = "lock.json"
PATIENCE = 2.0  # seconds in which the holder of a lock writes its name

_held: dict[Path, int] = {}  # folders of this process, and how often each is held


class FolderInUse(RuntimeError):
    """Another process trains in the folder; the message names the process."""


@contextlib.contextmanager
def in_use(folder: Path) -> Generator[None, None, None]:
    """Holds the lock of a run folder, `lock.json`: process id, host and time of the start.

    The system releases the lock when the process ends, however it ends, so the lock of a dead
    process is taken over. The file is removed at the end. One process may hold a folder several
    times.

    Args:
      folder: the run's; it exists.

    Raises:
      FolderInUse: another process holds it.
      OSError: the lock cannot be written.
    """
    folder = Path(folder).resolve()
    file = None if folder in _held else _taken(folder / FILE)
    _held[folder] = _held.get(folder, 0) + 1
    try:
        yield
    finally:
        _held[folder] -= 1
        if not _held[folder]:
            del _held[folder]
        if file is not None:
            _release(file, folder / FILE)


def _taken(path: Path) -> IO[Any]:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        file = os.fdopen(handle, "r+", encoding="utf-8")
        if not lock(file, wait=False):
            holder = _holder(file)
            file.close()
            raise FolderInUse(f"{path.parent} is in use by {holder}")
        if _is_at(file, path):
            break
        file.close()  # its holder removed it between the opening and the lock
    started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    file.truncate(0)
    json.dump({"process": os.getpid(), "host": socket.gethostname(), "started": started}, file)
    file.flush()
    return file


def _is_at(file: IO[Any], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _release(file: IO[Any], path: Path) -> None:
    with contextlib.suppress(OSError):  # Windows removes no open file
        path.unlink()
    file.close()
    with contextlib.suppress(OSError):
        if os.name == "nt":
            path.unlink()


def _holder(file: IO[Any]) -> str:
    """Who holds the lock. A process that has just taken it may not have written its name yet."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            file.seek(0)
            found = json.load(file)
            return f"process {found['process']} on {found['host']} since {found['started']}"
        except (ValueError, KeyError, TypeError, OSError):
            if time.monotonic() >= end:
                return "another process"
            time.sleep(0.01)
