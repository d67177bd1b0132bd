"""The progress line of a sweep: runs that have ended, those that run, and the time left."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynexit.runs.experiment_file import SettingsError
from dynexit.runs.sweeps.children import Outcome
from dynexit.runs.sweeps.record import FINISHED
from dynexit.runs.watching.screen import duration
from dynexit.runs.watching.state import State, WatchedRun

LOOK = 2.0
"""Seconds between two looks at the runs."""


class Progress:
    """A context. On a terminal the line is drawn again; elsewhere there is one when a run ends.

    Args:
      folder: the sweep's.
      todo: names of the runs that this command makes or resumes.
    """

    def __init__(self, folder: Path, todo: Sequence[str]):
        self._folder, self._todo = folder, todo
        self._ended: dict[str, Outcome] = {}
        self._runs: dict[str, WatchedRun] = {}
        self._first: dict[str, float] = {}  # fraction of each run at its first look
        self._began = self._looked = time.monotonic()
        self._status: Any = None

    def __enter__(self) -> "Progress":
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_terminal:
            self._status = console.status("starting")
            self._status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._status is not None:
            self._status.stop()

    def show(self, running: Sequence[str]) -> None:
        """Draws the line again, where it is due."""
        now = time.monotonic()
        if self._status is not None and now - self._looked >= LOOK:
            self._looked = now
            self._status.update(self.line(running))

    def ended(self, name: str, outcome: Outcome) -> None:
        """Prints how a run ended, with the time left."""
        self._ended[name] = outcome
        why = f": {outcome.why}" if outcome.why else ""
        print(f"{name} {outcome.state}{why}; {self.line([])}", file=sys.stderr, flush=True)

    def line(self, running: Sequence[str]) -> str:
        """`2 of 6 runs ended, 1 failed; depth=4,seed=2 at 40%; 0:03:10 left`."""
        failed = sum(outcome.state != FINISHED for outcome in self._ended.values())
        words = f"{len(self._ended)} of {len(self._todo)} runs ended"
        words += f", {failed} not finished" if failed else ""
        shares = {name: self._share(name) for name in running}
        if shares:
            words += "; " + ", ".join(f"{name} at {share:.0%}" for name, share in shares.items())
        left = seconds_left(
            time.monotonic() - self._began,
            len(self._ended) + sum(shares.values()) - sum(self._first.values()),
            len(self._todo) - len(self._ended) - sum(shares.values()),
        )
        return words + (f"; about {duration(left)} left" if left is not None else "")

    def _share(self, name: str) -> float:
        """The fraction of a run's updates that are made."""
        state = self._look(name)
        share = state.step / max(state.steps, 1) if state is not None else 0.0
        self._first.setdefault(name, share)
        return share

    def _look(self, name: str) -> State | None:
        try:
            if name not in self._runs:
                self._runs[name] = WatchedRun(self._folder / name)
            return self._runs[name].look()
        except SettingsError:  # it has not begun
            return None


def seconds_left(elapsed: float, made: float, remaining: float) -> float | None:
    """The time for the remaining runs at the pace so far; None where nothing was made yet.

    Example:
      >>> seconds_left(60.0, 1.5, 3.0), seconds_left(10.0, 0.0, 3.0), seconds_left(10.0, 3.0, 0.0)
      (120.0, None, None)
    """
    return elapsed * remaining / made if made > 0 and remaining > 0 else None
