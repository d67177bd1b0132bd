"""Executes a plan: writes its files, submits the job, follows it, and brings the run back."""

import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from dynexit.runs.experiment_file import SettingsError
from dynexit.runs.launch.plan import Command, File, Plan, State

BLIND = 5  # looks in a row that may fail, as when the network is down


class LaunchError(RuntimeError):
    """A command of a launch failed; the message is complete."""


class Shell(NamedTuple):
    """How commands run; tests pass their own.

    Attributes:
      run: runs a command with its output on the terminal, and returns the exit code.
      read: runs a command and returns its exit code and standard output, with the standard error
        if the code is not 0.
      sleep: waits for a number of seconds.
    """

    run: Callable[[Command], int]
    read: Callable[[Command], tuple[int, str]]
    sleep: Callable[[float], None]


def shell() -> Shell:
    """Commands of this machine."""

    def run(command: Command) -> int:
        return subprocess.run(command.words, stdin=subprocess.DEVNULL).returncode

    def read(command: Command) -> tuple[int, str]:
        done = subprocess.run(
            command.words, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        return done.returncode, done.stdout + (done.stderr if done.returncode else "")

    return Shell(run, read, time.sleep)


def execute(
    plan: Plan,
    say: Callable[[str], None],
    detach: bool = False,
    using: Shell | None = None,
    installs: Mapping[str, str] | None = None,
) -> int:
    """Runs a plan to its end; a job of the same name that is there already is followed.

    Args:
      plan: the plan.
      say: gets the lines of progress.
      detach: return once the job is submitted and started.
      using: how commands run; None for this machine.
      installs: how a missing program is installed, by program.

    Returns:
      0 if training finished or `detach`, 1 if it failed or was preempted too often.

    Raises:
      SettingsError: a program is not installed.
      LaunchError: a command failed.
    """
    using = shell() if using is None else using
    refuse_missing(_commands(plan), installs or {})
    state, detail = _first_state(plan, using, say)
    lost, shown = 0, ""
    while state not in ("done", "failed"):
        if state == "refused":
            raise LaunchError(f"{plan.name}: {detail}")
        if state == "lost":
            lost += 1
            if lost > plan.restarts:
                raise LaunchError(f"{plan.name} was preempted {lost} times; --restarts allows more")
            say(f"{plan.name} was preempted ({detail}); request {lost + 1}")
            _run(plan.clear, using, say)
        if state in ("none", "lost"):
            write(plan.files)
            _run(plan.request, using, say)
        if state == "ready":
            write(plan.files)
            _run(plan.start, using, say)
        if detach and (state == "ready" or not plan.start):
            say(f"{plan.name} is submitted; the same command without --detach follows it")
            return 0
        using.sleep(plan.every)
        state, detail = _state(plan, using)
        if (line := f"{plan.name}: {state} {detail}".rstrip()) != shown:
            say(line)
            shown = line
    _run(plan.bring, using, say)
    _run(plan.end, using, say)
    ending = "finished" if state == "done" else f"failed ({detail})"
    say(f"{plan.name} {ending}; its run folder is {plan.run}")
    return 0 if state == "done" else 1


def refuse_missing(commands: Iterable[Command], installs: Mapping[str, str]) -> None:
    """Refuses programs that are not installed.

    Raises:
      SettingsError: with the program and how it is installed.
    """
    for program in dict.fromkeys(command.words[0] for command in commands):
        if shutil.which(program) is None:
            how = f"; {installs[program]}" if program in installs else ""
            raise SettingsError(
                f"`{program}` is not on the PATH{how}. --dry-run prints all commands without it"
            )


def write(files: Iterable[File]) -> None:
    """Writes files and the folders above them; a file with the same bytes stays as it is."""
    for file in files:
        path = Path(file.path)
        if path.is_file() and path.read_bytes() == file.content:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)


def _commands(plan: Plan) -> list[Command]:
    looks = [look.command for look in plan.looks]
    return [*looks, *plan.request, *plan.start, *plan.clear, *plan.bring, *plan.end]


def _look(plan: Plan, using: Shell) -> tuple[State, str]:
    for look in plan.looks:
        if (found := look.read(*using.read(look.command))) is not None:
            return found
    return "none", ""


def _first_state(plan: Plan, using: Shell, say: Callable[[str], None]) -> tuple[State, str]:
    """The state before anything was done; what an earlier launch left failed is begun again."""
    state, detail = _look(plan, using)
    if state == "unseen":
        command = shlex.join(plan.looks[0].command.words)
        raise LaunchError(f"the state of {plan.name} cannot be seen ({detail}), try `{command}`")
    if state in ("failed", "refused"):
        say(f"an earlier launch of {plan.name} ended so: {detail}; it is launched again")
        if state == "failed" and plan.start:
            return "ready", ""
        _run(plan.clear, using, say)
        return "none", ""
    return state, detail


def _state(plan: Plan, using: Shell) -> tuple[State, str]:
    """The state of a job that was submitted; one look that fails says nothing."""
    state, detail = _look(plan, using)
    for _ in range(BLIND):
        if state not in ("none", "unseen"):
            return state, detail
        using.sleep(plan.every)
        state, detail = _look(plan, using)
    if state == "none":
        return "lost", "it is not there any more"
    raise LaunchError(
        f"the state of {plan.name} was not seen in {BLIND} looks ({detail}); the same "
        "`dynexit launch` command follows it again"
    )


def _run(commands: Iterable[Command], using: Shell, say: Callable[[str], None]) -> None:
    for command in commands:
        say(f"{command.does}\n  $ {shlex.join(command.words)}")
        code = using.run(command)
        if code:
            raise LaunchError(
                f"`{shlex.join(command.words)}` ended with exit code {code} ({command.does}); "
                "the same `dynexit launch` command continues from there"
            )
