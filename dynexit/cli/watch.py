"""`dynexit watch RUN`: a view of run folders while they are trained, from another terminal."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dynexit.cli.options import Flag, parse
from dynexit.cli.positional import split
from dynexit.runs.experiment_file import SettingsError
from dynexit.runs.watching.screen import screen
from dynexit.runs.watching.state import FINISHED, State, WatchedRun, runs_in

USAGE = "dynexit watch RUN [RUN ...] [--every 2] [--once] [--stall 10]"
FLAGS = (
    Flag("every", float, 2.0, "seconds between two looks"),
    Flag("once", bool, False, "print the view once; also where the output is no terminal"),
    Flag("stall", float, 10.0, "minutes without a record before a warning; 0: never"),
)


def watch(argv: Sequence[str]) -> int:
    """Shows a run, or a line for each of several runs or of a sweep; nothing is written to them.

    It ends when all runs have finished, and with Ctrl-C.

    Args:
      argv: the words after `dynexit watch`.

    Returns:
      The exit code, 0.

    Raises:
      SettingsError: invalid options, or a folder that is no run.
    """
    words, rest = split(argv, USAGE, most=None)
    options, _ = parse(rest, "dynexit watch RUN", FLAGS)
    found = [f"--every must be above 0, got {options['every']:g}"] if options["every"] <= 0 else []
    if options["stall"] < 0:
        found.append(f"--stall must be at least 0, got {options['stall']:g}")
    if found:
        raise SettingsError("; ".join(found))
    runs: dict[Path, WatchedRun] = {}
    look = lambda: _look([Path(word) for word in words], runs, options["stall"])
    if options["once"] or not sys.stdout.isatty():
        _print(look())
        return 0
    _live(look, options["every"])
    return 0


def _look(folders: Sequence[Path], runs: dict[Path, WatchedRun], stall: float) -> list[State]:
    """The states of all runs; those that a sweep has begun since are added."""
    for folder in [run for each in folders for run in runs_in(each)]:
        if folder not in runs:
            runs[folder] = WatchedRun(folder, stall)
    return [run.look() for run in runs.values()]


def _print(states: Sequence[State]) -> None:
    from rich.console import Console

    console = Console()
    width = None if console.is_terminal else max(console.width, 100)
    Console(width=width).print(screen(states))


def _live(look: Callable[[], list[State]], every: float) -> None:
    from rich.live import Live

    with Live(screen(look()), auto_refresh=False) as live:
        try:
            while True:
                states = look()
                live.update(screen(states), refresh=True)
                if all(state.status == FINISHED for state in states):
                    return
                time.sleep(every)
        except KeyboardInterrupt:
            return
