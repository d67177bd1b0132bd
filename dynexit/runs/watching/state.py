"""The state of a run, from the files of its folder. Nothing is written; loads no JAX."""

import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dynexit.core.folder_lock import FILE as LOCK
from dynexit.runs.experiment_file import SettingsError
from dynexit.runs.pipeline import REPORT
from dynexit.runs.run_folder import read
from dynexit.runs.watching.follow import Follower
from dynexit.runs.watching.holder import Holder, holder_of
from dynexit.training.collapse import CollapseWatch
from dynexit.training.logs import EVAL, FILE
from dynexit.training.monitoring.panels import HALTING

RUNNING, FINISHED, STOPPED, ENDED = "running", "finished", "stopped", "ended"
PACE = 10  # records over which the time per update is taken
EXIT = re.compile(rf"{EVAL}(accuracy|loss)_exit_(\d+)")


class Exit(NamedTuple):
    """The newest evaluation of an exit on the calibration split; None where it is not measured."""

    accuracy: float | None
    loss: float | None


class State(NamedTuple):
    """What is known of a run.

    Attributes:
      folder: its folder.
      name: of the experiment.
      status: "running": a process holds the folder; "finished": there is a report; "stopped": the
        folder is free and the run is not finished; "ended": its process ended without freeing it.
      step, steps: the last recorded update, and how many are to be made.
      seconds_left: expected until the last update; None where the pace is not known.
      losses: of all records, in order.
      exits: by number, see `Exit`.
      halting: the newest halting statistics, by name.
      newest: the last record.
      checkpoint: step and age in seconds of the newest checkpoint; None without one.
      best: step and mean accuracy (or loss) of the best evaluation; None without one.
      holder: the process that holds the folder.
      warnings: sentences: no update for a long time, values that are not finite, collapsed halting.
    """

    folder: Path
    name: str
    status: str
    step: int
    steps: int
    seconds_left: float | None
    losses: Sequence[float]
    exits: Mapping[int, Exit]
    halting: Mapping[str, float]
    newest: Mapping[str, Any]
    checkpoint: tuple[int, float] | None
    best: tuple[int, str, float] | None
    holder: Holder | None
    warnings: Sequence[str]


class WatchedRun:
    """Reads a run folder again and again; only what is new is read.

    Args:
      folder: the run's; it has a `settings.json`.
      stall: minutes without a record after which a warning says so. A run whose records are
        further apart is given three times the longest distance.

    Raises:
      SettingsError: no run folder.
    """

    def __init__(self, folder: Path | str, stall: float = 10.0):
        folder = Path(folder)
        recorded = read(folder)
        self.folder, self._stall = folder, 60 * stall
        self._name = str(recorded["name"])
        self._steps = _steps_of(recorded)
        self._follower = Follower(folder / FILE)
        self._forget()

    def look(self) -> State:
        """Reads what is new and returns the state now."""
        records, replaced = self._follower.read()
        if replaced:
            self._forget()
        for record in records:
            self._take(record)
        now, holder = time.time(), holder_of(self.folder)
        step = self._newest.get("step", 0)
        status = _status(self.folder, holder)
        return State(
            self.folder,
            self._name,
            status,
            step,
            self._steps,
            self._seconds_left(step) if status == RUNNING else None,
            self._losses,
            self._exits,
            self._halting,
            self._newest,
            _newest_checkpoint(self.folder, now),
            self._best,
            holder,
            [*self._warnings, *self._stalled(status, now)],
        )

    def _forget(self) -> None:
        self._losses: list[float] = []
        self._exits: dict[int, Exit] = {}
        self._halting: dict[str, float] = {}
        self._newest: dict[str, Any] = {}
        self._times: list[tuple[int, float]] = []
        self._longest = 0.0
        self._best: tuple[int, str, float] | None = None
        self._warnings: list[str] = []
        self._collapse = CollapseWatch()

    def _take(self, record: dict[str, Any]) -> None:
        self._newest, step = record, record["step"]
        if "loss" in record and record["loss"] is None:
            self._warnings.append(f"step {step}: the loss is not finite")
        numbers = {n: float(v) for n, v in record.items() if _is_number(v)}
        if "loss" in numbers:
            self._losses.append(numbers["loss"])
        if "seconds" in numbers:
            self._take_time(step, numbers["seconds"])
        for name, value in numbers.items():
            if match := EXIT.fullmatch(name):
                old = self._exits.get(int(match[2]), Exit(None, None))
                self._exits[int(match[2])] = old._replace(**{match[1]: value})
        self._halting |= {n: numbers[n] for n in HALTING if n in numbers}
        for name, better in (("accuracy", max), ("loss", min)):
            value = numbers.get(EVAL + name)
            if value is not None and (self._best is None or self._best[1] == name):
                if self._best is None or better(value, self._best[2]) != self._best[2]:
                    self._best = (step, name, value)
                break
        training = {n: v for n, v in numbers.items() if not n.startswith(EVAL)}
        self._warnings += self._collapse.look(training)

    def _take_time(self, step: int, seconds: float) -> None:
        if self._times and seconds < self._times[-1][1]:
            self._times = []  # the run was resumed, and its clock started again
        if self._times:
            self._longest = max(self._longest, seconds - self._times[-1][1])
        self._times = [*self._times[-PACE:], (step, seconds)]

    def _seconds_left(self, step: int) -> float | None:
        if len(self._times) < 2 or self._times[-1][0] <= self._times[0][0]:
            return None
        (first, began), (last, ended) = self._times[0], self._times[-1]
        return (self._steps - step) * (ended - began) / (last - first)

    def _stalled(self, status: str, now: float) -> list[str]:
        if status != RUNNING or self._stall <= 0:
            return []
        since = self._follower.changed or _changed(self.folder / LOCK)
        idle = now - since if since is not None else 0.0
        if idle <= max(self._stall, 3 * self._longest):
            return []
        training = self._newest.get("step", 0) < self._steps
        what = "no record" if training else "no report"
        return [f"{what} for {idle / 60:.0f} minutes"]


def runs_in(folder: Path) -> list[Path]:
    """The run folder itself, or the run folders in a sweep's folder, by name.

    Raises:
      SettingsError: there are none.
    """
    if (folder / "settings.json").exists():
        return [folder]
    found = sorted(path.parent for path in folder.glob("*/settings.json"))
    if not found:
        read(folder)  # says that it is no run folder
    return found


def _steps_of(recorded: Mapping[str, Any]) -> int:
    try:
        return int(recorded["settings"]["training"]["steps"])
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError("settings.json is damaged: it has no training.steps") from error


def _status(folder: Path, holder: Holder | None) -> str:
    if holder is not None:
        return ENDED if holder.alive is False else RUNNING
    return FINISHED if (folder / REPORT).exists() else STOPPED


def _newest_checkpoint(folder: Path, now: float) -> tuple[int, float] | None:
    """Step and age in seconds."""
    steps = [p for p in folder.glob("checkpoints/*") if p.name.isdecimal()]
    for path in sorted(steps, key=lambda p: int(p.name), reverse=True):
        changed = _changed(path / "manifest.json")
        if changed is not None:  # it is written last
            return int(path.name), max(0.0, now - changed)
    return None


def _changed(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
