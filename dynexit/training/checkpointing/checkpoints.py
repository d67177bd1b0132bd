"""Reads checkpoints and verifies them slice by slice; `saver.py` writes them.

A run's folder has `checkpoints/00000500/` for the state after update 500, and `best/00000400/` for
the parameters of the highest score: `arrays/` and `manifest.json` (see `manifest.py`). Only data
is stored, by leaf path; the structure comes from the program that restores, so nothing is
unpickled.

Process K has stored its slices in `arrays/K.safetensors`. A process reads and verifies what its
own devices need, whatever the numbers of devices and processes were.
"""

import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from dynexit.core.shapes import Array, HostArray, PyTree
from dynexit.training.checkpointing import manifest
from dynexit.training.checkpointing.manifest import Damaged, Incomplete, Manifest
from dynexit.training.checkpointing.slices import Box, assembled, box_of, needed, overlap
from dynexit.training.checkpointing.storage import SUFFIX, load
from dynexit.training.optimizer import path_name

FOLDER, BEST = "checkpoints", "best"
ARRAYS = "arrays"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or all are damaged; the message names the folder."""


class Restored(NamedTuple):
    """The content of a checkpoint.

    Attributes:
      step: updates made when it was saved.
      seed: the run's.
      tree: structure and placement of the leaves as in the template.
    """

    step: int
    seed: int
    tree: PyTree


class RestoredParams(NamedTuple):
    """The parameters of a checkpoint.

    Attributes:
      params: on the default device.
      step: updates made when they were saved.
    """

    params: PyTree
    step: int


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves by path, "params/blocks/w"; a key as its uint32 data."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(path): _data(leaf) for path, leaf in leaves}


def restore(
    folder: Path, template: PyTree, checkpoint: str | int = "newest", together: bool = False
) -> Restored | None:
    """Reads a checkpoint of a run. A warning is raised for each damaged one that is skipped.

    Args:
      folder: the run's.
      template: a tree of arrays (leaves are placed as they are) or of `jax.ShapeDtypeStruct`
        (placed on the default device). Checkpoints may hold leaves that it does not have.
      checkpoint: "newest", the newest undamaged one; "best", parameters alone, those of the
        highest score on the calibration split (see `evals.score`); or a step.
      together: whether all processes call it; they restore one checkpoint, which is undamaged for
        each of them.

    Returns:
      The checkpoint, or None where the folder has no complete one of this kind.

    Raises:
      CheckpointError: every complete checkpoint of this kind is damaged.
      ValueError: `checkpoint` is none of the three; or an undamaged checkpoint lacks a leaf of the
        template, or has it in another shape or type; the leaf is named.
    """
    damaged, candidates = 0, _candidates(Path(folder), checkpoint)
    while candidates := _agreed_on(candidates, together):
        path, problem, restored = candidates.pop(0), None, None
        try:
            found = manifest.read(path)
            _check_fits(path, found, template)
            restored = Restored(found.step, found.seed, _read(path, found, template))
        except (Damaged, Incomplete) as error:
            problem, restored = error, None
        if _all(restored is not None, together):
            return restored
        damaged += not isinstance(problem, Incomplete)
        reason = problem or "a slice that another process needs is damaged"
        warnings.warn(f"checkpoint {path} is skipped: {reason}", RuntimeWarning, stacklevel=2)
    if damaged:
        raise CheckpointError(
            f"no undamaged checkpoint ({checkpoint}) is left in {folder}: "
            f"{damaged} damaged (see the warnings)"
        )
    return None


def restore_params(
    folder: Path | str, template: PyTree, checkpoint: str | int = "newest"
) -> RestoredParams:
    """The parameters of a run's checkpoint, and its step.

    Args:
      folder: the run's.
      template: parameters or their shapes, `jax.eval_shape(model.init, key)`.
      checkpoint: "newest", "best" or a step, as in `restore`.

    Raises:
      FileNotFoundError: the folder has no such checkpoint; the message lists those it has.
      CheckpointError, ValueError: as `restore`.
    """
    found = restore(Path(folder), {"params": template}, checkpoint)
    if found is None:
        raise FileNotFoundError(missing(folder, checkpoint))
    return RestoredParams(found.tree["params"], found.step)


def missing(folder: Path | str, checkpoint: str | int) -> str:
    """A message for a checkpoint that does not exist; it lists those that do."""
    steps = [
        f"{kind} {', '.join(str(int(path.name)) for path in reversed(paths))}"
        for kind, place in (("steps", FOLDER), ("best", BEST))
        if (paths := newest_first(Path(folder) / place))
    ]
    there = f"it has {'; '.join(steps)}" if steps else "it has no checkpoint"
    return f"`checkpoint` {checkpoint!r} does not exist in {folder}: {there}"


def set_aside_after(folder: Path, step: int) -> None:
    """Renames checkpoints newer than `step` to `<name>.aside`; after a restore of `step` they are
    damaged or incomplete.
    """
    for path in newest_first(Path(folder) / FOLDER):
        if int(path.name) > step:
            aside = path.with_name(f"{path.name}.aside")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def newest_first(folder: Path) -> list[Path]:
    """The folders of all checkpoints in `folder`, complete or not."""
    steps = [path for path in folder.glob("*") if path.is_dir() and path.name.isdigit()]
    return sorted(steps, key=lambda path: int(path.name), reverse=True)


def _candidates(folder: Path, checkpoint: str | int) -> list[Path]:
    if checkpoint in ("newest", "best"):
        return newest_first(folder / (FOLDER if checkpoint == "newest" else BEST))
    if isinstance(checkpoint, bool) or not isinstance(checkpoint, int):
        raise ValueError(f"`checkpoint` must be 'newest', 'best' or a step, got {checkpoint!r}")
    paths = [folder / place / f"{checkpoint:08d}" for place in (FOLDER, BEST)]
    return [path for path in paths if path.is_dir()]


def _agreed_on(candidates: list[Path], together: bool) -> list[Path]:
    """The candidates of process 0: those of this process from its first one on."""
    if not together or jax.process_count() == 1:
        return candidates
    first = int(candidates[0].name) if candidates else -1
    step = int(multihost_utils.broadcast_one_to_all(np.int32(first)))
    if step >= 0 and step not in {int(path.name) for path in candidates}:
        raise CheckpointError(
            f"process {jax.process_index()} does not see the checkpoint of step {step}, which "
            "process 0 restores; all processes must share the run folder"
        )
    return [path for path in candidates if int(path.name) <= step]


def _all(restored: bool, together: bool) -> bool:
    if not together or jax.process_count() == 1:
        return restored
    return bool(multihost_utils.process_allgather(np.asarray(restored)).all())


def _read(path: Path, found: Manifest, template: PyTree) -> PyTree:
    """The template's leaves, from the slices that this process needs."""
    leaves = named_leaves(template)
    boxes = {name: needed(leaf) for name, leaf in leaves.items()}
    pieces: dict[str, list[tuple[Box, HostArray]]] = {name: [] for name in leaves}
    for each in found.slices:
        if each.leaf in leaves and _touches(each.box, boxes[each.leaf]):
            file = path / ARRAYS / f"{each.process}{SUFFIX}"
            values = load(file, each, found.leaves[each.leaf]["dtype"])
            pieces[each.leaf].append((each.box, values))

    def place(tree_path: Any, leaf: Any) -> Array:
        name = path_name(tree_path)
        dtype = np.dtype(found.leaves[name]["dtype"])
        try:
            parts = {box: assembled(box, pieces[name], dtype) for box in boxes[name]}
        except LookupError as error:
            raise Damaged(f"{name} lacks {error}") from error
        return _placed(parts, leaf)

    return jax.tree_util.tree_map_with_path(place, template)


def _touches(box: Box, others: list[Box]) -> bool:
    return any(box == other or overlap(box, other) is not None for other in others)


def _check_fits(path: Path, found: Manifest, template: PyTree) -> None:
    for name, leaf in named_leaves(template).items():
        if name not in found.leaves:
            raise ValueError(
                f"checkpoint {path} has no leaf {name}, which the model requires; it has "
                f"{', '.join(sorted(found.leaves))}"
            )
        got, wanted = found.leaves[name], manifest.describe(leaf)
        if any(got[field] != wanted[field] for field in wanted):
            raise ValueError(
                f"checkpoint {path}: leaf {name} is {got['dtype']}{got['shape']}, "
                f"the model requires {wanted['dtype']}{wanted['shape']}"
            )


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _data(leaf: Any) -> Any:
    if not _is_key(leaf):
        return leaf
    return (
        jax.eval_shape(jax.random.key_data, leaf)
        if isinstance(leaf, jax.ShapeDtypeStruct)
        else jax.random.key_data(leaf)
    )


def _placed(parts: dict[Box, HostArray], leaf: Any) -> Array:
    """An array where the template has it, from the boxes that this process needs."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        (whole,) = parts.values()
        return jnp.asarray(whole)
    data = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    placed = jax.make_array_from_callback(
        data.shape, data.sharding, lambda index: parts[box_of(index or (), data.shape)]
    )
    if not _is_key(leaf):
        return placed
    return jax.device_put(
        jax.random.wrap_key_data(placed, impl=jax.random.key_impl(leaf)), leaf.sharding
    )
