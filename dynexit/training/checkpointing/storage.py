"""The file of one process: the bytes of its slices one after another, in C order, and nothing else.

The manifest has the place, type, shape and sha256 of every slice, so each byte of the file is
verified, and a process reads only the slices that it needs.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dynexit.core.shapes import HostArray
from dynexit.training.checkpointing.manifest import Damaged, Saved, check

SUFFIX = ".bin"


def store(path: Path, arrays: Iterable[HostArray]) -> None:
    """Writes the bytes of arrays, in place of what an incomplete save left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for values in arrays:
            file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())


def load(path: Path, wanted: Saved, dtype: str) -> HostArray:
    """A slice, verified.

    Raises:
      Damaged: the file cannot be read, or the slice differs from the one that was saved.
    """
    count = wanted.box.size * np.dtype(dtype).itemsize
    try:
        read = np.fromfile(path, np.uint8, count, offset=wanted.offset)
    except OSError as error:
        what = f"{type(error).__name__}: {error.strerror or error}"
        raise Damaged(f"its arrays cannot be read: {what}") from error
    if read.size != count:
        raise Damaged(f"its arrays cannot be read: {path.name} ends within {wanted.leaf}")
    return check(wanted, dtype, read)
