"""Saves checkpoints in a background thread: the newest ones for resuming, and the best one.

Several processes: each writes the slices that its devices hold; process 0 then writes the manifest,
which completes the checkpoint on all of them.
"""

import math
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from dynexit.core.shapes import AnyArray, PyTree
from dynexit.training.checkpointing import manifest
from dynexit.training.checkpointing.checkpoints import (
    ARRAYS,
    BEST,
    FOLDER,
    CheckpointError,
    named_leaves,
    newest_first,
)
from dynexit.training.checkpointing.manifest import Manifest
from dynexit.training.checkpointing.slices import held
from dynexit.training.checkpointing.storage import SUFFIX, store


class Best(NamedTuple):
    """Parameters that score higher than any before, and their score."""

    params: PyTree
    score: float


class Saver:
    """Saves states in a background thread. A context: leaving it waits for the last save.

    The newest `keep` states lie in `folder/checkpoints`, the parameters of the highest score in
    `folder/best`. `saved` is the step last saved for resuming, `best` the highest score saved. A
    failure is raised by the call after it, as `CheckpointError`; that of one process is raised on
    all. All processes make the same calls.

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
        self._run, self._saves = _shared_number(), 0

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.finish()
        except CheckpointError as failure:
            if kind is None:
                raise
            warnings.warn(str(failure), RuntimeWarning, stacklevel=2)
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
        self._saves += 1
        attempt = f"{self._run:08x}-{self._saves}"
        leaves = None if tree is None else named_leaves(tree)
        self._running = self._thread.submit(self._save, step, leaves, best, attempt)

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

    def _save(
        self, step: int, leaves: dict[str, AnyArray] | None, best: Best | None, attempt: str
    ) -> None:
        def complete(folder: Path, leaves: dict[str, AnyArray], score: float | None = None) -> None:
            described = {name: manifest.describe(leaf) for name, leaf in leaves.items()}
            found = Manifest(step, self._seed, described, (), score, attempt)
            _write(folder, found, leaves)

        if best is not None:
            params = named_leaves({"params": best.params})
            complete(self._folder / BEST, params, best.score)
            _delete_all_but(self._folder / BEST, lambda path: int(path.name) == step)
        if leaves is not None:
            complete(self._folder / FOLDER, leaves)
            kept = _complete(self._folder / FOLDER)[: self._keep]
            _delete_all_but(self._folder / FOLDER, lambda path: path in kept)


def best_score(folder: Path) -> float:
    """The score of a run's best checkpoint, -inf where there is none."""
    for path in newest_first(Path(folder) / BEST):
        with suppress(manifest.Damaged, manifest.Incomplete):
            if (score := manifest.read(path).score) is not None:
                return score
    return -math.inf


def _write(folder: Path, found: Manifest, leaves: Mapping[str, AnyArray]) -> None:
    """Writes this process's slices of a checkpoint, and waits for those of the others."""
    path, process = folder / f"{found.step:08d}", jax.process_index()
    need = 0
    try:
        path.mkdir(parents=True, exist_ok=True)
        if process == 0:
            (path / manifest.FILE).unlink(missing_ok=True)
        parts = {name: held(leaf) for name, leaf in leaves.items()}
        need = sum(values.nbytes for boxes in parts.values() for values in boxes.values())
        if (free := shutil.disk_usage(folder).free) < need:
            raise OSError(f"only {free / 1e6:.1f} MB are free")
        slices = manifest.entries(parts, process)
        values = (each for boxes in parts.values() for each in boxes.values())
        named = {each.key: array for each, array in zip(slices, values, strict=True)}
        store(path / ARRAYS / f"{process}{SUFFIX}", named)
        if process == 0:
            others = manifest.read_parts(path, range(1, jax.process_count()), found.attempt)
            for file in (path / ARRAYS).glob(f"*{SUFFIX}"):  # of a save by more processes
                if int(file.stem) >= jax.process_count():
                    file.unlink(missing_ok=True)
            manifest.write(path, found._replace(slices=[*slices, *others]))
            shutil.rmtree(path / manifest.PARTS, ignore_errors=True)
        else:
            manifest.write_part(path, process, found.attempt, slices)
            manifest.wait_for(path, found.attempt)
    except Exception as error:
        if process == 0:
            shutil.rmtree(path, ignore_errors=True)
        if jax.process_count() > 1:
            manifest.write_failure(path, process, found.attempt, str(error))
        raise CheckpointError(
            f"the checkpoint of step {found.step} could not be written to {folder}, which needs "
            f"{need / 1e6:.1f} MB for it: {error}; checkpoints saved before are untouched"
        ) from error


def _shared_number() -> int:
    """A number that all processes share, and that names a run of the program."""
    number = np.random.default_rng().integers(2**31, dtype=np.int32)
    if jax.process_count() == 1:
        return int(number)
    return int(multihost_utils.broadcast_one_to_all(number))


def _complete(folder: Path) -> list[Path]:
    return [path for path in newest_first(folder) if (path / manifest.FILE).is_file()]


def _delete_all_but(folder: Path, kept: Callable[[Path], bool]) -> None:
    """Deletes complete checkpoints; incomplete ones do not count."""
    for path in _complete(folder) if jax.process_index() == 0 else ():
        if not kept(path):
            shutil.rmtree(path, ignore_errors=True)
