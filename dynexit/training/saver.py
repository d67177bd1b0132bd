"""Saves checkpoints in a background thread: the newest ones for resuming, and the best one."""

import math
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dynexit.core.shapes import PyTree
from dynexit.training import manifest
from dynexit.training.checkpoints import (
    ARRAYS,
    BEST,
    FOLDER,
    CheckpointError,
    named_leaves,
    newest_first,
    orbax,
)


class Best(NamedTuple):
    """Parameters that score higher than any before, and their score."""

    params: PyTree
    score: float


class Saver:
    """Saves states in a background thread. A context: leaving it waits for the last save.

    The newest `keep` states lie in `folder/checkpoints`, the parameters of the highest score in
    `folder/best`. `saved` is the step last saved for resuming, `best` the highest score saved. A
    failure is raised by the call after it, as `CheckpointError`.

    Args:
      folder: the run's.
      keep: how many states to keep for resuming.
      seed: written beside them.
    """

    def __init__(self, folder: Path, keep: int, seed: int):
        self.saved = -1
        self.best = best_score(folder)
        self._folder, self._keep, self._seed = Path(folder), keep, seed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._running: Future[None] | None = None

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self.finish()
        except CheckpointError as error:
            if kind is None:
                raise
            warnings.warn(str(error), RuntimeWarning, stacklevel=2)
        finally:
            self._thread.shutdown()

    def save(self, step: int, tree: PyTree | None, best: Best | None = None) -> None:
        """Starts to save, and waits only for the save before it.

        The arrays must not be donated before the save has finished.

        Args:
          step: updates made.
          tree: the state to resume from; None for none.
          best: new best parameters; None for none. They replace the previous best checkpoint.
        """
        self.finish()
        if tree is not None:
            self.saved = step
        if best is not None:
            self.best = best.score
        if jax.process_index() == 0:
            leaves = None if tree is None else named_leaves(tree)
            self._running = self._thread.submit(self._save, step, leaves, best)

    def raise_if_failed(self) -> None:
        """Raises the failure of a finished save; does not wait.

        Raises:
          CheckpointError: the save failed.
        """
        if self._running is not None and self._running.done():
            self.finish()

    def finish(self) -> None:
        """Waits for the save in progress.

        Raises:
          CheckpointError: the save failed.
        """
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _save(self, step: int, leaves: dict[str, Any] | None, best: Best | None) -> None:
        if best is not None:
            params = named_leaves({"params": best.params})
            _write(self._folder / BEST, step, self._seed, params, best.score)
            _delete_all_but(self._folder / BEST, lambda path: int(path.name) == step)
        if leaves is not None:
            _write(self._folder / FOLDER, step, self._seed, leaves)
            kept = _complete(self._folder / FOLDER)[: self._keep]
            _delete_all_but(self._folder / FOLDER, lambda path: path in kept)


def best_score(folder: Path) -> float:
    """The score of a run's best checkpoint, -inf where there is none."""
    for path in newest_first(Path(folder) / BEST):
        with suppress(manifest.Damaged, manifest.Incomplete):
            if (score := manifest.read(path).score) is not None:
                return score
    return -math.inf


def _write(
    folder: Path, step: int, seed: int, leaves: dict[str, Any], score: float | None = None
) -> None:
    path = folder / f"{step:08d}"
    need = sum(leaf.nbytes for leaf in leaves.values())
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / manifest.FILE).unlink(missing_ok=True)
        if (free := shutil.disk_usage(folder).free) < need:
            raise OSError(f"only {free / 1e6:.1f} MB are free")
        arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
        with orbax() as (checkpointer, args, _):  # replaces what an incomplete save left behind
            full = {n: a for n, a in arrays.items() if a.size}
            checkpointer.save((path / ARRAYS).absolute(), args=args.PyTreeSave(full), force=True)
        manifest.write(path, step, seed, arrays, score)
    except Exception as error:
        shutil.rmtree(path, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {folder}, which needs "
            f"{need / 1e6:.1f} MB for it: {error}; checkpoints saved before are untouched"
        ) from error


def _complete(folder: Path) -> list[Path]:
    return [path for path in newest_first(folder) if (path / manifest.FILE).is_file()]


def _delete_all_but(folder: Path, kept: Callable[[Path], bool]) -> None:
    """Deletes complete checkpoints; incomplete ones do not count."""
    for path in _complete(folder):
        if not kept(path):
            shutil.rmtree(path, ignore_errors=True)
