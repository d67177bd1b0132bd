"""Folders as `transformers` writes them: `config.json`, and the tensors in `model.safetensors` or
in shards that `model.safetensors.index.json` lists.

Nothing is downloaded, and no file that could hold code is read.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dynexit.core.files import local, replacing
from dynexit.core.shapes import HostArray
from dynexit.models.hf_config import CONFIG, WEIGHTS, existing, read_config, read_json

INDEX = "model.safetensors.index.json"
FLOATS = ("F32", "F16", "BF16")
PICKLES = ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Stored(NamedTuple):
    """A tensor in a file.

    Attributes:
      file: where it is.
      dtype: in the words of safetensors, "F32" for example.
      shape: its shape.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]


class HfFolder(NamedTuple):
    """What a folder holds; tensors are read when asked for.

    Attributes:
      path: the folder.
      config: the content of `config.json`.
      tensors: of all shards, by name.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Stored]

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> HostArray:
        """One floating point tensor, in the type of the file.

        Args:
          name: in the file.
          shape: that it must have; None for any.

        Returns:
          An array of float32, float16 or bfloat16.

        Raises:
          ValueError: no such tensor, another shape or type, or a value that is not finite; the
            file and the tensor are named.
        """
        if name not in self.tensors:
            raise ValueError(f"{self.path} has no tensor {name!r}")
        stored = self.tensors[name]
        where = f"{stored.file}: {name!r}"
        if shape is not None and stored.shape != tuple(shape):
            raise ValueError(
                f"{where} must have shape {list(shape)}, got {list(stored.shape)}; {CONFIG} and "
                "the tensors do not belong together"
            )
        if stored.dtype not in FLOATS:
            raise ValueError(f"{where} must be of {', '.join(FLOATS)}, got {stored.dtype}")
        array = self.read_any(name)
        if not np.isfinite(array).all():
            raise ValueError(f"{where} has values that are not finite; the checkpoint is damaged")
        return array

    def read_any(self, name: str) -> HostArray:
        """One tensor as it is, of any type, such as a buffer of integers.

        Raises:
          ValueError: the file cannot be read any more.
        """
        import ml_dtypes as ml_dtypes  # makes "bfloat16" a name of a numpy type
        from safetensors import SafetensorError, safe_open

        file = self.tensors[name].file
        try:
            with safe_open(file, framework="numpy") as opened:
                return opened.get_tensor(name)
        except (OSError, SafetensorError, TypeError) as error:
            raise ValueError(f"{file}: {name!r} cannot be read: {error}") from error


def open_folder(folder: str | os.PathLike[str]) -> HfFolder:
    """Opens a folder and reads the names, types and shapes of its tensors.

    Args:
      folder: with `config.json`, and `model.safetensors` or shards.

    Returns:
      `HfFolder`.

    Raises:
      ValueError: no such folder, a file that is missing or damaged, shards that do not hold what
        the index says, or weights in pickles alone; the file is named.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as place:
      ...     w = np.ones(3, np.float32)
      ...     path = write_folder(f"{place}/new", {"model_type": "vit"}, {"w": w})
      ...     found = open_folder(path)
      ...     found.config, found.read("w", (3,)).tolist()
      ({'model_type': 'vit'}, [1.0, 1.0, 1.0])
    """
    path = existing(folder)
    config = read_config(path)
    if (path / WEIGHTS).is_file():
        return HfFolder(path, config, _header(path / WEIGHTS))
    if not (path / INDEX).is_file():
        _refuse_pickles(path)
        raise ValueError(f"{path} holds neither {WEIGHTS} nor {INDEX}")
    return HfFolder(path, config, _sharded(path))


def write_folder(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    tensors: Mapping[str, HostArray],
) -> Path:
    """Writes a folder that `open_folder` and transformers read.

    Args:
      folder: a new folder, or an empty one.
      config: the content of `config.json`.
      tensors: by name; the types are kept.

    Returns:
      The folder.

    Raises:
      FileExistsError: the folder holds something.
    """
    from safetensors.numpy import save_file

    path = local(folder, "folder")
    path.mkdir(parents=True, exist_ok=True)
    if any(path.iterdir()):
        raise FileExistsError(f"`folder` must be new or empty, got {path}, which holds something")
    with replacing(path / WEIGHTS) as draft:
        whole = {name: np.ascontiguousarray(a).reshape(np.shape(a)) for name, a in tensors.items()}
        save_file(whole, draft, metadata={"format": "pt"})
    with replacing(path / CONFIG) as draft:
        draft.write_text(json.dumps(dict(config), indent=2, sort_keys=True) + "\n", "utf-8")
    shutil.copymode(path / CONFIG, path / WEIGHTS)  # safetensors lets only the owner read
    return path


def _header(file: Path) -> dict[str, Stored]:
    """What one file holds; its length must be that which its header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}
            return {
                name: Stored(file, str(part.get_dtype()), tuple(part.get_shape()))
                for name, part in parts.items()
            }
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{file} is no whole safetensors file ({error}); it may be truncated: copy it again"
        ) from error


def _sharded(path: Path) -> dict[str, Stored]:
    index = read_json(path / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{path / INDEX} must have an object 'weight_map' of names and files")
    found: dict[str, Stored] = {}
    for file in sorted({str(file) for file in places.values()}):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ValueError(
                f"{path / INDEX} must name safetensors files of its own folder, got {file!r}"
            )
        if not (path / file).is_file():
            raise ValueError(f"{path / INDEX} names {file}, which is missing")
        held = _header(path / file)
        listed = {name for name, other in places.items() if other == file}
        if apart := sorted(listed ^ set(held)):
            holder = INDEX if apart[0] in listed else file
            raise ValueError(
                f"{path / file} and {INDEX} differ: {apart[0]!r} is in {holder} alone; the files "
                "do not belong together"
            )
        found |= held
    return found


def _refuse_pickles(path: Path) -> None:
    for pattern in PICKLES:
        for file in sorted(path.glob(pattern)):
            raise ValueError(
                f"{file} is a pickle, which can run code when it is read, so it is refused; "
                "convert it where you trust it, with transformers: "
                "`AutoModel.from_pretrained(folder).save_pretrained(new_folder)` writes "
                f"{WEIGHTS}"
            )
