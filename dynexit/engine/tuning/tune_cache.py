"""Measured tile costs in a JSON file, so that a second `tune` of the same step measures nothing.

    {"format": "dynexit tile costs 2", "costs": {"cpu, 2 cores, jax 0.10.0, depth 12, batch 32,
     sizes 1/2/32, <sha256>": [{"1": 0.0011, "2": 0.0015, "32": 0.02}]}}

The list has one entry per stage. The sha256 is that of the lowered StableHLO of the step of every
stage on the whole batch. Another network, dtype or shape has another key. Other weights of the same
network have the same key, unless the step closes over them as constants.
"""

import contextlib
import hashlib
import json
import math
import os
import uuid
import warnings
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dynexit.core.shapes import PyTree
from dynexit.core.stages import Stage

FORMAT = "dynexit tile costs 2"  # the number changes with the method of measurement
Costs = tuple[dict[int, float], ...]


def key_of(
    stages: Sequence[Stage], entering: Sequence[PyTree], batch: int, sizes: Sequence[int]
) -> str:
    """A line that identifies everything on which costs depend.

    Args:
      stages: the network.
      entering: the state before every stage, arrays or shapes `[B, ...]`; the device is that of the
        arrays, or the default device for shapes.
      batch: rows B.
      sizes: tile sizes that are measured.
    """
    digest = hashlib.sha256()
    run = lambda step, i, state: step.apply(step.select(i), i, state)
    for stage, state in zip(stages, entering, strict=True):
        digest.update(jax.jit(run).lower(stage.step, jnp.int32(0), state).as_text().encode())
    arrays = [leaf for leaf in jax.tree.leaves(entering) if isinstance(leaf, jax.Array)]
    device = min(arrays[0].devices(), key=lambda d: d.id) if arrays else jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    depth, tried = (
        "/".join(map(str, values)) for values in ([s.steps * s.step.blocks for s in stages], sizes)
    )
    about = f"{device.device_kind}, {cores} cores, jax {jax.__version__}"
    return f"{about}, depth {depth}, batch {batch}, sizes {tried}, {digest.hexdigest()}"


def checked_path(cache: str | os.PathLike[str]) -> Path:
    """`cache` as a path; the file need not exist.

    Raises:
      TypeError: `cache` is not a path.
      ValueError: `cache` is a folder.
    """
    if not isinstance(cache, (str, os.PathLike)):
        raise TypeError(f"`cache` must be the path of a JSON file, got {type(cache).__name__}")
    path = Path(cache)
    if path.is_dir():
        raise ValueError(f"`cache` must be the path of a JSON file, got the folder {path}")
    return path


def read(path: Path, key: str, sizes: Sequence[int]) -> Costs | None:
    """The costs stored under a key, or None; warns if the file or the entry is invalid."""
    entry = _load(path, warn=True).get(key)
    if entry is None:
        return None
    try:
        costs = tuple(
            {int(size): float(seconds) for size, seconds in stage.items()} for stage in entry
        )
        if costs and all(
            sorted(stage) == list(sizes) and _sound(stage.values()) for stage in costs
        ):
            return costs
    except (TypeError, ValueError, AttributeError):
        pass
    warnings.warn(
        f"`cache` {path} has an invalid entry for {key}; its costs are measured again", stacklevel=3
    )
    return None


def write(path: Path, key: str, costs: Costs) -> None:
    """Adds costs to the file and keeps the entries of other processes; warns if it cannot write."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.parent):
            kept = _load(path, warn=False) | {key: costs}
            temporary.write_text(json.dumps({"format": FORMAT, "costs": kept}, indent=1) + "\n")
            os.replace(temporary, path)
    except OSError as error:
        warnings.warn(
            f"`cache` {path} could not be written ({error}); the costs will be measured again",
            stacklevel=3,
        )
    finally:
        with contextlib.suppress(OSError):  # it does not exist after a successful replace
            temporary.unlink()


def _sound(seconds: Any) -> bool:
    return all(math.isfinite(s) and s > 0 for s in seconds)


def _load(path: Path, warn: bool) -> dict[str, Any]:
    """The entries of the file; empty if there is no file, or a file of another format."""
    try:
        content = json.loads(path.read_text())
        if content["format"] == FORMAT and isinstance(content["costs"], dict):
            return content["costs"]
        found = f"the format {content['format']!r}"
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        found = f"{type(error).__name__}: {error}"
    if warn:
        warnings.warn(
            f"`cache` {path} is not a file of tile costs ({found}); costs are measured again and "
            "the file is overwritten",
            stacklevel=4,
        )
    return {}


@contextlib.contextmanager
def _alone(folder: Path) -> Generator[None, None, None]:
    """Locks a folder for one process, if the system can.

    Otherwise the last of two writers wins; the file is complete in either case.
    """
    handle = None
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except (ImportError, OSError):
        pass
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
