"""The runs of a sweep as launched jobs: `dynexit launch` in the place of `dynexit train`."""

import hashlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from dynexit.runs.sweeps.grid import Point

JOBS = "jobs"


def job_name(folder: Path, point: Point) -> str:
    """The name of a run's job, which all targets accept; equal for equal folders and points.

    Example:
      >>> job_name(Path("runs/depths"), Point("depth=4,seed=0", None, ()))
      'depths-depth-4-seed-0-61cb6e'
    """
    text = f"{folder.name}-{point.name}"
    stem = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    stem = stem if stem[:1].isalpha() else f"run-{stem}"
    return f"{stem[:30].rstrip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def launch_words(
    launch: Sequence[str], file: Path, shared: Sequence[str], point: Point, folder: Path
) -> list[str]:
    """The words after `dynexit` that launch or resume one run of a sweep.

    Args:
      launch: the target and its options.
      file: the experiment.
      shared: options of all runs.
      point: the run.
      folder: of the sweep; the job and its run lie in `folder/jobs` until the run has finished.
    """
    target, *options = launch
    name = ["--name", job_name(folder, point), "--folder", str(folder / JOBS)]
    return ["launch", target, str(file), *name, *options, *shared, *point.words]


def bring_home(folder: Path, point: Point) -> None:
    """Moves the folder of a launched run that has finished to its place in the sweep."""
    run = folder / JOBS / job_name(folder, point)
    if run.is_dir() and not (folder / point.name).exists():
        shutil.move(run, folder / point.name)
