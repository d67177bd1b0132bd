"""What a launch writes and executes, as data: built without effects, printed by `--dry-run`."""

import hashlib
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

State = Literal[
    "none", "waiting", "ready", "running", "lost", "refused", "failed", "done", "unseen"
]
"""Of a job: not there; queued; its hosts wait for a start; training; its hosts were taken away; the
request was refused; training ended with an error; it finished; the look itself failed."""


SOURCE = "source"
"""The folder of a job folder that holds the source of dynexit, if it is a development tree."""


class File(NamedTuple):
    """A file to write.

    Attributes:
      path: where.
      content: its bytes.
      source: the file that it is a copy of, or None for one that launch composes.
    """

    path: Path
    content: bytes
    source: Path | None = None


class Command(NamedTuple):
    """A program with its arguments, and what it does in a few words."""

    words: tuple[str, ...]
    does: str


class Look(NamedTuple):
    """A command that shows the state of a job.

    Attributes:
      command: the command.
      read: exit code and output (with the standard error if the code is not 0) -> the state and a
        line to print; None if the next `Look` shows it.
    """

    command: Command
    read: Callable[[int, str], tuple[State, str] | None]


def last_line(output: str) -> str:
    """The last line with text, of a progress bar what it showed last."""
    lines = [line.strip() for line in output.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1] if lines else ""


class Plan(NamedTuple):
    """Everything that a launch writes and executes.

    Attributes:
      name: of the job.
      files: written first.
      looks: tried in order until one shows the state.
      request: from "none", submits the job or asks for its hosts.
      start: from "ready", starts the training on the hosts.
      clear: from "lost", and from "failed" or "refused" of an earlier launch, removes what is
        left.
      bring: brings the run folder back, after "done" and after "failed".
      end: gives the hosts back, after `bring`.
      stop: ends the job; shown to the user, never executed.
      run: the run folder on this machine.
      every: seconds between two looks.
      restarts: how often "lost" is answered with `clear` and `request`.
    """

    name: str
    files: tuple[File, ...]
    looks: tuple[Look, ...]
    request: tuple[Command, ...]
    start: tuple[Command, ...]
    clear: tuple[Command, ...]
    bring: tuple[Command, ...]
    end: tuple[Command, ...]
    stop: Command
    run: Path
    every: float = 30.0
    restarts: int = 10


def show(plan: Plan) -> str:
    """The text that `--dry-run` prints: every file and every command, in order."""
    return f"{show_files(plan.files)}\n{show_steps(plan)}"


def show_steps(plan: Plan) -> str:
    """The commands of a plan, in the order of a launch."""
    looks = [look.command for look in plan.looks]
    sections = (
        ("request", "", plan.request),
        ("look", f", every {plan.every:g} s", looks),
        ("start", ", when the hosts are ready", plan.start),
        ("bring back", ", when training has ended", plan.bring),
        ("end", ", after that", plan.end),
        ("clear", f", after a preemption, before the next request ({plan.restarts} at most)",
         plan.clear),
        ("stop", ", by hand", (plan.stop,)),
    )  # fmt: skip
    return "\n".join(
        f"## {title}{when}\n{show_commands(commands)}"
        for title, when, commands in sections
        if commands
    )


def show_files(files: Sequence[File]) -> str:
    """Composed files whole; a line for each copy, and one for the source of dynexit."""
    tree = [file for file in files if SOURCE in file.path.parts and file.source is not None]
    lines = ["## files"]
    for file in files:
        if file.source is not None and file not in tree:
            lines.append(f"# {file.path}: a copy of {file.source} ({_digest([file])})")
    if tree:
        folder = tree[0].path.parent
        folder = next(p for p in (folder, *folder.parents) if p.name == SOURCE)
        lines.append(f"# {folder}: dynexit of this checkout, {len(tree)} files ({_digest(tree)})")
    for file in files:
        if file.source is None:
            lines.append(f"# {file.path}:\n{file.content.decode()}")
    return "\n".join(lines)


def _digest(files: Sequence[File]) -> str:
    return f"sha256 {hashlib.sha256(b''.join(f.content for f in files)).hexdigest()[:12]}"


def show_commands(commands: Sequence[Command]) -> str:
    """One comment and one shell line for each command."""
    return "".join(f"# {c.does}\n{shlex.join(c.words)}\n" for c in commands)
