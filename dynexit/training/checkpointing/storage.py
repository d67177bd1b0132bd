"""The file of one process: its slices by name, in the safetensors format.

The manifest has the type, shape and sha256 of every slice, so every slice is verified when it is
read, and a process reads only the slices that it needs. orbax is not used, because its handler of
host arrays writes on process 0 alone.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dynexit.core.shapes import HostArray
from dynexit.training.checkpointing.manifest import Damaged, Saved, check

SUFFIX = ".safetensors"


def store(path: Path, slices: Mapping[str, HostArray]) -> None:
    """Writes slices by name, in place of what an incomplete save left behind."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.asarray(values, order="C") for name, values in slices.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def load(path: Path, wanted: Saved, dtype: str) -> HostArray:
    """A slice, verified.

    Raises:
      Damaged: the file cannot be read, or the slice differs from the one that was saved.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            read = file.get_tensor(wanted.key)
    except (OSError, SafetensorError) as error:
        what = f"{type(error).__name__}: {error}"
        raise Damaged(f"its arrays cannot be read: {what}") from error
    return check(wanted, dtype, read)
