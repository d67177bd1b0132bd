"""A new run that continues another from one of its checkpoints, for instance after divergence."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dynexit.runs.experiment_file import SettingsError
from dynexit.runs.run_folder import read, write_text

CHECKPOINTS, METRICS = "checkpoints", "metrics.jsonl"


def refuse_branch(options: Mapping[str, Any]) -> None:
    """Refuses `--from-run` and `--from-step` that fit nothing.

    Raises:
      SettingsError: a step without a run, `--init` beside it, no run there, or no such checkpoint.
    """
    source, step = options["from_run"], options["from_step"]
    if source is None:
        if step is not None:
            raise SettingsError("--from-step needs --from-run RUN, whose checkpoint it names")
        return
    if options["init"]:
        raise SettingsError("--from-run and --init exclude each other")
    read(Path(source))
    _chosen(Path(source), step)


def branch(source: Path, step: int | None, folder: Path, log: Callable[[str], None]) -> None:
    """Copies a checkpoint, and the records up to it, into a new run folder.

    A folder that has checkpoints already is left as it is: the run resumes from them.

    Args:
      source: the run folder that is continued.
      step: of its checkpoint; None for the newest.
      folder: the new run's, which has its `settings.json`.
      log: gets one line.

    Raises:
      SettingsError: no such checkpoint.
    """
    if any((folder / CHECKPOINTS).glob("*")):
        return
    chosen = _chosen(source, step)
    place = folder / CHECKPOINTS / chosen.name
    draft = place.with_name(f"{place.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(chosen, draft)
    records = source / METRICS
    if records.is_file():
        lines = records.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if _step_of(line) <= int(chosen.name)]
        write_text(folder / METRICS, "".join(kept))
    draft.rename(place)
    log(f"{folder} continues {source} from its checkpoint of step {int(chosen.name)}")


def _chosen(source: Path, step: int | None) -> Path:
    found = [path for path in (source / CHECKPOINTS).glob("*") if path.name.isdigit()]
    there = {int(path.name): path for path in found}
    if step is None and there:
        return there[max(there)]
    if step not in there:
        has = ", ".join(map(str, sorted(there))) or "none"
        wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise SettingsError(f"--from-run {source} has no {wanted}; it has {has}")
    return there[step]


def _step_of(line: str) -> float:
    """The step of a record; infinite for a damaged one."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
