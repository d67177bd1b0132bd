"""The manifest of a checkpoint: names, shapes and types of all leaves, the sha256 of every slice
that was saved, and its own.

The storage format does not detect a flipped bit in array data; the manifest does. It is written
last, by an atomic rename, so a checkpoint with a manifest is complete.

Each of several processes writes a part, `parts/K.json`, after its slices; process 0 writes the
manifest once it has read all parts.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dynexit.core.shapes import HostArray
from dynexit.training.checkpointing.slices import Box

FILE, PARTS = "manifest.json", "parts"
WAIT, POLL = 600.0, 0.05  # seconds


class Damaged(Exception):
    """A checkpoint differs from what was saved; the message states the difference."""


class Incomplete(Exception):
    """A checkpoint was not saved completely."""


class Saved(NamedTuple):
    """A slice that was saved.

    Attributes:
      leaf: the path of the array that it is of.
      start: its first element.
      shape: its shape.
      sha256: of its bytes in C order.
      process: the one that saved it.
    """

    leaf: str
    start: tuple[int, ...]
    shape: tuple[int, ...]
    sha256: str
    process: int

    @property
    def key(self) -> str:
        """Its name in the file of the process."""
        return f"{self.leaf}@{','.join(map(str, self.start))}"

    @property
    def box(self) -> Box:
        """Where it is in its array."""
        return Box(self.start, self.shape)


class Manifest(NamedTuple):
    """What a checkpoint must contain.

    Attributes:
      step: updates made when it was saved.
      seed: the run's.
      leaves: by path: {"shape", "dtype"}.
      slices: of all processes; together they cover every leaf once.
      score: what the best checkpoint maximises; None for checkpoints saved for resuming.
      attempt: names the save; equal on all processes.
    """

    step: int
    seed: int
    leaves: dict[str, dict[str, Any]]
    slices: Sequence[Saved]
    score: float | None = None
    attempt: str = ""


def digest(array: HostArray) -> str:
    """sha256 of an array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def describe(array: Any) -> dict[str, Any]:
    """Shape and type of an array, in the form of the manifest."""
    return {"shape": list(array.shape), "dtype": str(np.dtype(array.dtype))}


def entries(parts: Mapping[str, Mapping[Box, HostArray]], process: int) -> list[Saved]:
    """The entries of what a process saves.

    Args:
      parts: by leaf, its boxes and their values.
      process: the one that saves them.

    Example:
      >>> parts = {"w": {Box((4, 0), (1, 2)): np.ones((1, 2))}, "n": {Box((), ()): np.array(3)}}
      >>> [each.key for each in entries(parts, 0)]
      ['w@4,0', 'n@']
    """
    return [
        Saved(leaf, *box, digest(values), process)
        for leaf, boxes in parts.items()
        for box, values in boxes.items()
    ]


def write(folder: Path, manifest: Manifest) -> None:
    """Writes a manifest into `folder`, atomically."""
    _write(folder / FILE, manifest._asdict())


def read(folder: Path) -> Manifest:
    """Reads the manifest of a checkpoint.

    Raises:
      Incomplete: there is none.
      Damaged: it cannot be read, or differs from what was written.
    """
    try:
        body = _read(folder / FILE)
        slices = [Saved(s, tuple(a), tuple(n), *rest) for s, a, n, *rest in body.pop("slices")]
        return Manifest(slices=slices, **body)
    except FileNotFoundError:
        raise Incomplete(f"it has no {FILE}: it was not saved completely") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{FILE} cannot be read: {error}") from error


def write_part(folder: Path, process: int, attempt: str, slices: Sequence[Saved]) -> None:
    """Says that a process has saved its slices."""
    (folder / PARTS).mkdir(parents=True, exist_ok=True)
    _write(folder / PARTS / f"{process}.json", {"attempt": attempt, "slices": slices})


def write_failure(folder: Path, process: int, attempt: str, error: str) -> None:
    """Says that a process could not save its slices, where that can be written."""
    with contextlib.suppress(OSError):
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
        _write(folder / PARTS / f"{process}.json", {"attempt": attempt, "error": error})


def read_parts(folder: Path, processes: Iterable[int], attempt: str) -> list[Saved]:
    """Waits for the parts of other processes, and returns their slices.

    Raises:
      OSError: a process could not save its slices, or none arrived in `WAIT` seconds; the
        processes are named.
    """
    missing, slices, end = sorted(processes), list[Saved](), time.monotonic() + WAIT
    while missing:
        for process in list(missing):
            part = _part(folder, process, attempt)
            if part is None:
                continue
            if "error" in part:
                raise OSError(f"process {process}: {part['error']}")
            slices += [Saved(s, tuple(a), tuple(n), *rest) for s, a, n, *rest in part["slices"]]
            missing.remove(process)
        if missing and time.monotonic() > end:
            named = ", ".join(map(str, missing))
            raise OSError(f"no slices of process {named} arrived within {WAIT:.0f} s")
        if missing:
            time.sleep(POLL)
    return slices


def wait_for(folder: Path, attempt: str) -> None:
    """Waits until process 0 has written the manifest of a save.

    Raises:
      OSError: it could not complete the checkpoint, or did not in `WAIT` seconds.
    """
    end = time.monotonic() + WAIT
    while True:
        with contextlib.suppress(Damaged, Incomplete):
            if read(folder).attempt == attempt:
                return
        part = _part(folder, 0, attempt) or {}
        if "error" in part:
            raise OSError(f"process 0: {part['error']}")
        if time.monotonic() > end:
            raise OSError(f"process 0 did not complete it within {WAIT:.0f} s")
        time.sleep(POLL)


def check(wanted: Saved, dtype: str, read: HostArray) -> HostArray:
    """A slice that was read, compared with the one that was saved.

    Raises:
      Damaged: its shape, type or sha256 differs; the leaf is named.
    """
    if describe(read) != {"shape": list(wanted.shape), "dtype": dtype}:
        raise Damaged(f"{wanted.leaf} is {read.dtype}{list(read.shape)} in its file")
    if (sha256 := digest(read)) != wanted.sha256:
        raise Damaged(f"{wanted.leaf}: sha256 is {sha256}, {wanted.sha256} was saved")
    return read


def _part(folder: Path, process: int, attempt: str) -> dict[str, Any] | None:
    """The part of a process, if it is there and of this save."""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, Damaged):
        part = _read(folder / PARTS / f"{process}.json")
        return part if part.get("attempt") == attempt else None
    return None


def _write(path: Path, body: Mapping[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w") as file:
        json.dump({**body, "sha256": _seal(body)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read(path: Path) -> dict[str, Any]:
    body = json.loads(path.read_text())
    if body.pop("sha256") != _seal(body):
        raise Damaged(f"{path.name} differs from what was written")
    return body


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
