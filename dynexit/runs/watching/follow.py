"""Reads `metrics.jsonl` as it grows; nothing is written. Loads no JAX."""

import json
import os
from pathlib import Path
from typing import Any


class Follower:
    """Reads the records of a file that another process appends to.

    A run that is resumed replaces the file; it is then read again from its start. Damaged lines
    are skipped, and a last line without its end is read once it is complete.

    Args:
      path: of `metrics.jsonl`; it need not exist yet.

    Attributes:
      changed: when the file was last written, in seconds since the epoch; None without a file.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder) / "metrics.jsonl"
      ...     follower = Follower(path)
      ...     _ = path.write_text('{"step": 1}\\n{"step"')
      ...     first = follower.read()
      ...     _ = path.write_text('{"step": 1}\\n{"step": 2}\\n')
      ...     first, follower.read()
      (([{'step': 1}], False), ([{'step': 2}], False))
    """

    def __init__(self, path: Path):
        self._path, self._at = path, 0
        self._file: tuple[int, int] | None = None  # device and number of the file
        self.changed: float | None = None

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """The records since the last call, and whether the file was replaced since then.

        Where it was replaced the records are all of the new file.
        """
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                known = (status.st_dev, status.st_ino)
                replaced = self._file is not None and (
                    known != self._file or status.st_size < self._at
                )
                self._at = 0 if replaced else self._at
                self._file, self.changed = known, status.st_mtime
                file.seek(self._at)
                content = file.read()
        except OSError:
            return [], False
        whole = content[: content.rfind(b"\n") + 1]
        self._at += len(whole)
        return [r for line in whole.splitlines() if (r := _parsed(line)) is not None], replaced


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:  # invalid UTF-8 included
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None
