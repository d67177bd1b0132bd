"""The manifest of a checkpoint: names, shapes, types and sha256 of every leaf, and of itself.

The storage format does not detect a flipped bit in array data; the manifest does. It is written
last, by an atomic rename, so a checkpoint with a manifest is complete.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FILE = "manifest.json"


class Damaged(Exception):
    """A checkpoint differs from what was saved; the message states the difference."""


class Incomplete(Exception):
    """A checkpoint was not saved completely."""


class Manifest(NamedTuple):
    """What a checkpoint must contain.

    Attributes:
      step: updates made when it was saved.
      seed: the run's.
      leaves: by path: {"shape", "dtype", "sha256"}.
      score: what the best checkpoint maximises; None for checkpoints saved for resuming.
    """

    step: int
    seed: int
    leaves: dict[str, dict[str, Any]]
    score: float | None = None


def digest(array: np.ndarray) -> str:
    """sha256 of an array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def describe(array: Any) -> dict[str, Any]:
    """Shape and type of an array, in the form of the manifest."""
    return {"shape": list(array.shape), "dtype": str(np.dtype(array.dtype))}


def write(
    folder: Path,
    step: int,
    seed: int,
    leaves: Mapping[str, np.ndarray],
    score: float | None = None,
) -> None:
    """Writes the manifest of `leaves` into `folder`, atomically."""
    described = {name: {**describe(leaf), "sha256": digest(leaf)} for name, leaf in leaves.items()}
    body = Manifest(step, seed, described, score)._asdict()
    partial = folder / f"{FILE}.partial"
    with partial.open("w") as file:
        json.dump({**body, "sha256": _seal(body)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / FILE)


def read(folder: Path) -> Manifest:
    """Reads the manifest of a checkpoint.

    Raises:
      Incomplete: there is none.
      Damaged: it cannot be read, or differs from what was written.
    """
    try:
        body = json.loads((folder / FILE).read_text())
        seal = body.pop("sha256")
        if seal != _seal(body):
            raise Damaged(f"{FILE} differs from what was written")
        return Manifest(**body)
    except FileNotFoundError:
        raise Incomplete(f"it has no {FILE}: it was not saved completely") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{FILE} cannot be read: {error}") from error


def verify(manifest: Manifest, leaves: Mapping[str, np.ndarray]) -> None:
    """Compares the leaves read with those saved.

    Raises:
      Damaged: a leaf is missing, or its shape, type or sha256 differs; the leaf is named.
    """
    for name, wanted in manifest.leaves.items():
        if name not in leaves:
            raise Damaged(f"{name} is missing")
        got = {**describe(leaves[name]), "sha256": digest(leaves[name])}
        for field, value in wanted.items():
            if got[field] != value:
                raise Damaged(f"{name}: {field} is {got[field]}, {value} was saved")


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
