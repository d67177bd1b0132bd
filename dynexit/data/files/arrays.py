"""Arrays of `.npz` files, checked."""

import functools
import os
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from dynexit.core.labels import IGNORED, as_labels, check_labels
from dynexit.data.files.settings import FromNpz


def read(path: Path, settings: FromNpz) -> dict[str, np.ndarray]:
    """Inputs, labels and ids of a file; nothing in it is executed.

    Args:
      path: of the file.
      settings: names of the arrays, the vocabulary and the label that is ignored.

    Returns:
      "inputs": uint8, float32 or int32 `[n, ...]`, finite; "labels": int32 `[n, ...]`; "id" where
      the settings name one.

    Raises:
      ValueError: the file or an array cannot be read, shapes that do not fit, a value that is not
        finite, a label that is no class or a token outside the vocabulary.
      TypeError: inputs or labels of a type that cannot be used.
    """
    names = {"inputs": settings.inputs_name, "labels": settings.labels_name}
    if settings.id is not None:
        names["id"] = settings.id
    try:
        stat = os.stat(path)
        found = _read(Path(path), stat.st_mtime_ns, stat.st_size, tuple(names.values()))
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"`path` {path} cannot be read as .npz: {error}") from error
    leaves = dict(zip(names, found, strict=True))
    leaves["inputs"] = _inputs(path, leaves["inputs"], settings)
    labels = as_labels(leaves["labels"], settings.ignore_label, f"{settings.labels_name} of {path}")
    check_labels(labels, 0, str(path))
    if not (labels != IGNORED).any():
        raise ValueError(f"`{settings.labels_name}` of {path} must have a label that counts")
    leaves["labels"] = labels
    lengths = {name: leaf.shape[:1] for name, leaf in leaves.items()}
    if set(lengths.values()) != {(len(labels),)}:
        raise ValueError(f"arrays of {path} must have one length, got {lengths}")
    return leaves


@functools.lru_cache(maxsize=6)
def _read(path: Path, _time: int, _size: int, names: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    with open(path, "rb") as opened, _npz(path, opened) as file:
        missing = [name for name in names if name not in file.files]
        if missing:
            raise ValueError(
                f"{path} has no array {missing[0]!r}; it has {', '.join(file.files) or 'none'}"
            )
        return tuple(_array(path, name, file) for name in names)


def _npz(path: Path, opened: IO[bytes]) -> np.lib.npyio.NpzFile:
    try:
        found = np.load(opened, allow_pickle=False)
    except ValueError as error:  # pickled objects, which may hold code
        raise ValueError(f"`path` {path} cannot be read as .npz: {error}") from error
    if not isinstance(found, np.lib.npyio.NpzFile):
        raise ValueError(f"`path` {path} must be an .npz file, got one array; see `numpy.savez`")
    return found


def _array(path: Path, name: str, file: np.lib.npyio.NpzFile) -> np.ndarray:
    try:
        return file[name]
    except ValueError as error:  # pickled objects, which may hold code
        raise TypeError(
            f"`{name}` of {path} must be an array of numbers or strings, got objects"
        ) from error


def _inputs(path: Path, inputs: np.ndarray, settings: FromNpz) -> np.ndarray:
    name, kind = f"`{settings.inputs_name}` of {path}", inputs.dtype.kind
    if inputs.ndim < 2 or inputs.size == 0:
        raise ValueError(f"{name} must have shape [n, ...], none of them 0, got {inputs.shape}")
    if settings.vocabulary is not None:
        if kind not in "iu":
            raise TypeError(f"{name} must be integers for a vocabulary, got {inputs.dtype}")
        low, high = int(inputs.min()), int(inputs.max())
        if low < 0 or high >= settings.vocabulary:
            raise ValueError(
                f"{name} must lie in 0..{settings.vocabulary - 1}, the vocabulary, "
                f"got {low}..{high}"
            )
        return inputs.astype(np.int32)
    if inputs.dtype == np.uint8:
        return inputs
    if kind != "f":
        raise TypeError(
            f"{name} must be bytes (uint8) or floating point, got {inputs.dtype}; "
            "`vocabulary` is for token ids"
        )
    bad = ~np.isfinite(inputs).reshape(len(inputs), -1).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{name} must be finite, got {int(bad.sum())} rows that are not; the first is row "
            f"{int(bad.argmax())}"
        )
    return inputs
