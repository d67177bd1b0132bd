"""What `dynexit watch` shows: one run in full, or a line for each of several."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from dynexit.runs.watching.state import ENDED, FINISHED, RUNNING, State

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 48  # of the sparkline

Renderable: TypeAlias = Any  # of rich


def screen(states: Sequence[State]) -> Renderable:
    """One run in full, several in a table."""
    return one_run(states[0]) if len(states) == 1 else several(states)


def one_run(state: State) -> Renderable:
    """All that is known of a run, as a panel."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.text import Text

    parts: list[Any] = [_lines(state)]
    if state.exits:
        parts += [Text(), _exits(state)]
    parts += [Text(f"warning: {printable(w)}", style="bold red") for w in state.warnings]
    title = f"{printable(state.name)}: {printable(str(state.folder))}"
    return Panel(Group(*parts), title=Text(title), title_align="left")


def several(states: Sequence[State]) -> Renderable:
    """A line for each run."""
    from rich.table import Table
    from rich.text import Text

    shown = Table()
    for name in ("run", "state", "update", "left", "loss", "calibration", "examples/s", "warning"):
        left = name in ("run", "state", "warning")
        shown.add_column(name, justify="left" if left else "right", overflow="fold")
    for state in states:
        last = state.exits[max(state.exits)] if state.exits else None
        words = (
            state.folder.name,
            state.status,
            f"{state.step}/{state.steps}",
            "" if state.seconds_left is None else duration(state.seconds_left),
            f"{state.losses[-1]:.4f}" if state.losses else "",
            "" if last is None or last.accuracy is None else f"{last.accuracy:.2%}",
            _number(state.newest.get("examples_per_second"), ".0f"),
            state.warnings[-1] if state.warnings else "",
        )
        shown.add_row(*(Text(printable(word)) for word in words))
    return shown


def _lines(state: State) -> Renderable:
    """Two columns: what, and its value."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts(state):
        grid.add_row(Text(name, style="bold"), Text(printable(value)))
    return grid


def facts(state: State) -> list[tuple[str, str]]:
    """Names and values of the upper part of the panel."""
    share = state.step / max(state.steps, 1)
    left = "" if state.seconds_left is None else f", {duration(state.seconds_left)} left"
    found = [
        ("state", _status(state)),
        ("update", f"{state.step} of {state.steps} ({share:.0%}){left}"),
    ]
    if state.losses:
        found.append(("loss", f"{sparkline(state.losses)} {state.losses[-1]:.4f}"))
    if state.halting:
        found.append(("halting", ", ".join(f"{n} {v:.3g}" for n, v in state.halting.items())))
    if speed := _speed(state):
        found.append(("speed", speed))
    if state.checkpoint is not None:
        step, age = state.checkpoint
        found.append(("checkpoint", f"update {step}, {duration(age)} ago"))
    if state.best is not None:
        step, name, value = state.best
        shown = f"{value:.2%}" if name == "accuracy" else f"{value:.4f}"
        found.append(("best", f"mean {name} {shown} at update {step}"))
    return found


def _status(state: State) -> str:
    if state.status == RUNNING:
        return f"running, held by {state.holder}"
    if state.status == ENDED:
        return f"ended without freeing the folder: {state.holder}; the same command resumes it"
    if state.status == FINISHED:
        return "finished"
    return "stopped; the same command resumes it"


def _speed(state: State) -> str:
    newest = state.newest
    found = [
        _number(newest.get("examples_per_second"), ".0f", " examples/s"),
        _number(newest.get("model_flops_utilisation"), ".1%", " of the peak FLOPs"),
        _number(newest.get("flops_per_second"), ".3g", " FLOP/s"),
    ]
    memory = newest.get("memory_peak_bytes")
    if isinstance(memory, (int, float)):
        found.append(f"{memory / 2**30:.2f} GiB at most on a device")
    return ", ".join(filter(None, found))


def _exits(state: State) -> Renderable:
    from rich.table import Table

    shown = Table(title="calibration split", title_justify="left")
    for name in ("exit", "accuracy", "loss"):
        shown.add_column(name, justify="right")
    for number, found in sorted(state.exits.items()):
        shown.add_row(str(number), _number(found.accuracy, ".2%"), _number(found.loss, ".4f"))
    return shown


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """A line of bars, lowest to highest; where there are more values than bars, of means.

    Example:
      >>> sparkline([3.0, 2.0, 1.0, 1.0])
      '█▅▁▁'
      >>> sparkline([])
      ''
    """
    if not values:
        return ""
    count = min(width, len(values))
    edges = [k * len(values) // count for k in range(count + 1)]
    means = [math.fsum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in means)


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
      >>> duration(42.3), duration(3725), duration(200_000)
      ('42 s', '1:02:05', '2 d 07:33:20')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    if days:
        return f"{days} d {hours:02}:{minutes:02}:{rest:02}"
    return f"{hours}:{minutes:02}:{rest:02}"


def printable(text: str) -> str:
    """The text without characters that control a terminal: a run folder may be another's.

    Example:
      >>> printable("a\\x1b[2Jb")
      'a?[2Jb'
    """
    return "".join(c if c.isprintable() else "?" for c in text)


def _number(value: Any, form: str, unit: str = "") -> str:
    return f"{value:{form}}{unit}" if isinstance(value, (int, float)) else ""
