"""Checkpoints: saved in the background, verified leaf by leaf, and never the reason that a run is
lost.

A run's folder has `checkpoints/00000500/` for step 500: `arrays/`, written by orbax, and
`manifest.json` (see `manifest.py`). Only data is stored, by leaf path; the structure comes from the
program that restores, so nothing is unpickled.

Several processes: process 0 writes, so every leaf must be whole on it (replicated parameters are);
all processes restore, so they must see the folder.
"""

import contextlib
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.types import PyTree
from dynexit.training import manifest
from dynexit.training.manifest import Damaged, Incomplete
from dynexit.training.optimizer import path_name
from dynexit.training.sharding import put

FOLDER = "checkpoints"
ARRAYS = "arrays"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or no good one is left; the message names the folder."""


class Restored(NamedTuple):
    """What a checkpoint held.

    Attributes:
      step: updates made when it was saved.
      seed: the run's.
      tree: as the template, leaves placed as the template's are.
    """

    step: int
    seed: int
    tree: PyTree


class RestoredParams(NamedTuple):
    """What evaluation needs of a checkpoint.

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


class Saver:
    """Saves states in a background thread and keeps the newest ones. A context: leaving it waits
    for the last save.

    Args:
      folder: the run's; checkpoints lie in `folder/checkpoints`.
      keep: how many to keep.
      seed: written beside them.

    `saved` is the step last handed in. A failure is raised by the call after it, as
    `CheckpointError`.
    """

    def __init__(self, folder: Path, keep: int, seed: int):
        self.saved = -1
        self._folder, self._keep, self._seed = Path(folder) / FOLDER, keep, seed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._running: Future | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind, *exception) -> None:
        try:
            self.finish()
        except CheckpointError as error:
            if kind is None:
                raise
            warnings.warn(str(error), RuntimeWarning, stacklevel=2)
        finally:
            self._thread.shutdown()

    def save(self, step: int, tree: PyTree) -> None:
        """Begins to save `tree`, which must not be donated meanwhile; waits only for the save
        before it.
        """
        self.finish()
        self.saved = step
        if jax.process_index() == 0:
            leaves = named_leaves(tree)
            self._running = self._thread.submit(
                _save, self._folder, step, self._seed, leaves, self._keep
            )

    def raise_if_failed(self) -> None:
        """Raises what went wrong in the background, if anything has; does not wait."""
        if self._running is not None and self._running.done():
            self.finish()

    def finish(self) -> None:
        """Waits for the save under way.

        Raises:
          CheckpointError: it failed.
        """
        running, self._running = self._running, None
        if running is not None:
            running.result()


def restore(folder: Path, template: PyTree) -> Restored | None:
    """The newest good checkpoint of a run; a warning says why newer ones were passed over.

    Args:
      folder: the run's.
      template: a tree of arrays (leaves are placed as they are) or of `jax.ShapeDtypeStruct`
        (placed on the default device). Checkpoints may hold more than it asks for.

    Returns:
      The checkpoint, or None where the folder has none that was saved to its end.

    Raises:
      CheckpointError: every checkpoint that was saved to its end is damaged.
      ValueError: a good checkpoint lacks a leaf of the template, or has it in another shape or
        type; the leaf is named.
    """
    damaged = 0
    for path in _newest_first(Path(folder) / FOLDER):
        try:
            found = manifest.read(path)
            _check_fits(path, found, template)
            arrays = _read(path, found)
            manifest.verify(found, arrays)
        except (Damaged, Incomplete) as error:
            damaged += isinstance(error, Damaged)
            warnings.warn(
                f"checkpoint {path} is passed over: {error}", RuntimeWarning, stacklevel=2
            )
            continue
        tree = jax.tree_util.tree_map_with_path(
            lambda p, leaf, a=arrays: _placed(a[path_name(p)], leaf), template
        )
        return Restored(found.step, found.seed, tree)
    if damaged:
        raise CheckpointError(
            f"no good checkpoint is left in {Path(folder) / FOLDER}: {damaged} damaged (see the warnings)"
        )
    return None


def restore_params(folder: Path | str, template: PyTree) -> RestoredParams:
    """The parameters of a run's newest good checkpoint, and its step.

    Args:
      folder: the run's.
      template: parameters or their shapes, `jax.eval_shape(model.init, key)`.

    Raises:
      FileNotFoundError: the folder has no checkpoint.
      CheckpointError, ValueError: as `restore`.
    """
    found = restore(Path(folder), {"params": template})
    if found is None:
        raise FileNotFoundError(f"no checkpoint in {Path(folder) / FOLDER}")
    return RestoredParams(found.tree["params"], found.step)


def set_aside_after(folder: Path, step: int) -> None:
    """Renames checkpoints newer than `step`, damaged or cut short where `step` is what was
    restored, to `<name>.aside`.
    """
    for path in _newest_first(Path(folder) / FOLDER):
        if int(path.name) > step:
            aside = path.with_name(f"{path.name}.aside")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


def _newest_first(folder: Path) -> list[Path]:
    steps = [path for path in folder.glob("*") if path.is_dir() and path.name.isdigit()]
    return sorted(steps, key=lambda path: int(path.name), reverse=True)


def _save(folder: Path, step: int, seed: int, leaves: dict[str, Any], keep: int) -> None:
    path = folder / f"{step:08d}"
    need = sum(leaf.nbytes for leaf in leaves.values())
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / manifest.FILE).unlink(missing_ok=True)
        if (free := shutil.disk_usage(folder).free) < need:
            raise OSError(f"only {free / 1e6:.1f} MB are free")
        arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
        with _orbax() as (checkpointer, args, _):  # replaces what a save cut short left behind
            full = {n: a for n, a in arrays.items() if a.size}
            checkpointer.save((path / ARRAYS).absolute(), args=args.PyTreeSave(full), force=True)
        manifest.write(path, step, seed, arrays)
    except Exception as error:
        shutil.rmtree(path, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {folder}, which needs {need / 1e6:.1f} MB for it: {error}; "
            "checkpoints saved before are untouched"
        ) from error
    whole = [other for other in _newest_first(folder) if (other / manifest.FILE).is_file()]
    for old in whole[keep:]:
        shutil.rmtree(old, ignore_errors=True)


def _read(path: Path, found: manifest.Manifest) -> dict[str, np.ndarray]:
    empty = {
        n: np.zeros(leaf["shape"], leaf["dtype"])
        for n, leaf in found.leaves.items()
        if 0 in leaf["shape"]
    }
    try:
        with _orbax() as (checkpointer, args, as_numpy):
            wanted = {name: as_numpy for name in found.leaves if name not in empty}
            arrays = checkpointer.restore(
                (path / ARRAYS).absolute(), args=args.PyTreeRestore(restore_args=wanted)
            )
            return {**empty, **arrays}
    except (
        Exception
    ) as error:  # storage raises many kinds: whichever it is, this checkpoint cannot be read
        raise Damaged(
            f"its arrays cannot be read: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error


@contextlib.contextmanager
def _orbax() -> Iterator[tuple[Any, Any, Any]]:
    """An orbax checkpointer of this process alone, orbax's argument classes, and its mark for numpy
    leaves.
    """
    import orbax.checkpoint as ocp

    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process{jax.process_index()}",
    )
    with ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(), multiprocessing_options=alone
    ) as checkpointer:
        yield checkpointer, ocp.args, ocp.RestoreArgs(restore_type=np.ndarray)


def _check_fits(path: Path, found: manifest.Manifest, template: PyTree) -> None:
    for name, leaf in named_leaves(template).items():
        if name not in found.leaves:
            raise ValueError(
                f"checkpoint {path} has no leaf {name}, which the model wants; it has {', '.join(sorted(found.leaves))}"
            )
        got, wanted = found.leaves[name], manifest.describe(leaf)
        if any(got[field] != wanted[field] for field in wanted):
            raise ValueError(
                f"checkpoint {path}: leaf {name} is {got['dtype']}{got['shape']}, "
                f"the model wants {wanted['dtype']}{wanted['shape']}"
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


def _placed(array: np.ndarray, leaf: Any) -> jax.Array:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.asarray(array)
    if _is_key(leaf):
        data = put(array, jax.random.key_data(leaf).sharding)
        return jax.device_put(
            jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf)), leaf.sharding
        )
    return put(array, leaf.sharding)
