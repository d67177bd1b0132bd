"""Runs the points of a sweep as child processes, several at a time."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dynexit.runs.sweeps.record import FAILED, FINISHED, STOPPED

STOPPED_CODES = (143, 130, -15, -2)  # SIGTERM and Ctrl-C
POLL = 0.2
"""Seconds between two looks at the processes."""


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
      state: finished, stopped or failed.
      why: the last line of its output, or the signal; empty for a finished run.
    """

    state: str
    why: str


def start(argv: Sequence[str], log: Path, group: str) -> subprocess.Popen[bytes]:
    """Starts `dynexit` with some words in a process of its own.

    Args:
      argv: the words.
      log: file to which its output is appended.
      group: under which wandb shows the run, unless `WANDB_RUN_GROUP` is set.
    """
    command = [sys.executable, "-m", "dynexit.cli.main", *argv]
    environment = {"WANDB_RUN_GROUP": group, "PYTHONUNBUFFERED": "1"} | os.environ
    with log.open("ab") as file:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment
        )


def run_all_points(
    names: Sequence[str],
    begin: Callable[[str], subprocess.Popen[bytes]],
    log_of: Callable[[str], Path],
    parallel: int,
    ended: Callable[[str, Outcome], None],
    waiting: Callable[[list[str]], None],
    should_stop: Callable[[], bool],
) -> None:
    """Runs processes until all have ended. A failure does not end the others.

    Args:
      names: of the points, in the order in which they start.
      begin: starts the process of a point.
      log_of: the file with its output.
      parallel: number of processes at a time.
      ended: called with the outcome of each.
      waiting: called again and again with the names that run.
      should_stop: once True, no process starts, and those that run receive SIGTERM and save.
    """
    running: dict[str, subprocess.Popen[bytes]] = {}
    pending, stopping = list(names), False
    try:
        while running or (pending and not stopping):
            if not stopping and should_stop():
                stopping = True
                _terminate(running.values())
            while not stopping and pending and len(running) < parallel:
                running[pending[0]] = begin(pending[0])
                del pending[0]
            waiting(list(running))
            time.sleep(POLL)
            for name in [n for n, process in running.items() if process.poll() is not None]:
                code = running.pop(name).returncode
                ended(name, outcome(code, log_of(name)))
    finally:
        _terminate(running.values())


def outcome(code: int, log: Path) -> Outcome:
    """What an exit code means; a negative one is the number of a signal."""
    if code == 0:
        return Outcome(FINISHED, "")
    if code in STOPPED_CODES:
        return Outcome(STOPPED, "stopped by a signal")
    if code < 0:
        return Outcome(FAILED, f"ended by signal {-code}")
    return Outcome(FAILED, last_line(log) or f"exit code {code}")


def last_line(path: Path) -> str:
    """The last line of a file that is not empty, at most 300 characters of it."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def _terminate(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
