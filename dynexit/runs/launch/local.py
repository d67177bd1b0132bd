"""`dynexit launch local`: one or several processes on this machine, restarted when they stop."""

import dataclasses
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from dynexit.runs.launch.execute import write
from dynexit.runs.launch.job import CACHE, Job, checkout, pack, train_words
from dynexit.runs.launch.plan import SOURCE, Command, File, show_commands, show_files
from dynexit.runs.launch.supervise import Started, free_port, supervise
from dynexit.runs.launch.target import Target


@dataclasses.dataclass(frozen=True)
class Local(Target):
    """Options of `dynexit launch local`.

    Example:
      >>> Local(processes=0).validate()
      ['processes must lie in 1..256, got 0']
    """

    processes: int = 1
    """processes that train together"""
    devices: int | None = None
    """virtual CPU devices of each process"""
    gpus: int | None = None
    """GPUs of each process: the first has GPUs 0..K-1, the next K..2K-1"""
    start_timeout: int = 300
    """seconds that the processes wait for one another"""
    grace: int = 60
    """seconds after the end of one process until the others are stopped"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = super().validate()
        ranges = {"processes": 256, "devices": 256, "gpus": 64}
        for name, high in ranges.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= high:
                found.append(f"{name} must lie in 1..{high}, got {value}")
        for name in ("start_timeout", "grace"):
            if not 1 <= getattr(self, name) <= 86_400:
                found.append(f"{name} must lie in 1..86400 seconds, got {getattr(self, name)}")
        if self.devices is not None and self.gpus is not None:
            found.append(f"devices and gpus: only one, got {self.devices} and {self.gpus}")
        return found


class LocalPlan(NamedTuple):
    """What `launch local` writes and executes.

    Attributes:
      job: the job.
      files: of the job folder.
      setup: executed first.
      processes: port -> the command of each process.
      logs: the file that each process' output goes to.
      environment: added to the environment of all processes; `CUDA_VISIBLE_DEVICES` is set in the
        words of each.
    """

    job: Job
    files: tuple[File, ...]
    setup: tuple[Command, ...]
    processes: Callable[[str], tuple[Command, ...]]
    logs: tuple[Path, ...]
    environment: Mapping[str, str]


def plan_local(options: Local, job: Job, python: str = sys.executable) -> LocalPlan:
    """The plan of a launch on this machine.

    The processes import the copy of the experiment and of dynexit in the job folder, so a change
    of the originals does not change a run between two restarts.
    """
    file = (job.files / "experiment" / job.experiment.name).as_posix()
    run, cache = job.run.as_posix(), (job.folder / CACHE).as_posix()
    words = train_words(job, run, cache, file)

    def processes(port: str) -> tuple[Command, ...]:
        commands = []
        for k in range(options.processes):
            own = [python, "-m", "dynexit.cli.main", *words]
            if options.processes > 1:
                own += ["--coordinator", f"localhost:{port}", "--processes", str(options.processes)]
                own += ["--process", str(k), "--start-timeout", str(options.start_timeout)]
            if options.gpus is not None:
                first = k * options.gpus
                gpus = ",".join(str(g) for g in range(first, first + options.gpus))
                own = ["env", f"CUDA_VISIBLE_DEVICES={gpus}", *own]
            commands.append(Command(tuple(own), f"process {k} of {options.processes}"))
        return tuple(commands)

    environment = {"PYTHONUNBUFFERED": "1"}
    if checkout() is not None:
        environment["PYTHONPATH"] = str((job.files / SOURCE).resolve())
    if options.devices is not None:
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={options.devices}"
    logs = tuple(job.files / "logs" / f"{k}.log" for k in range(options.processes))
    setup = (Command(("sh", "-c", options.setup), "prepare this machine"),) if options.setup else ()
    return LocalPlan(job, pack(job, ""), setup, processes, logs, environment)


def show_local(plan: LocalPlan) -> str:
    """The text that `--dry-run` prints; PORT is a free one, chosen at each start."""
    lines = [show_files(plan.files)]
    if plan.setup:
        lines.append(f"## setup\n{show_commands(plan.setup)}")
    lines.append("## processes, restarted when one was stopped by a signal or lost a peer")
    for command, log in zip(plan.processes("PORT"), plan.logs, strict=True):
        variables = [f"{name}={shlex.quote(value)}" for name, value in plan.environment.items()]
        words = " ".join([*variables, shlex.join(command.words)])
        lines.append(f"# {command.does}\n{words} >>{log} 2>&1")
    return "\n".join(lines)


def execute_local(plan: LocalPlan, options: Local, say: Callable[[str], None]) -> int:
    """Trains on this machine and returns the worst exit code of the last start.

    A signal to this process (SIGTERM, SIGHUP, SIGINT) is sent to all processes, which save and
    exit; they are not restarted then.
    """
    write(plan.files)
    environment = os.environ | dict(plan.environment)
    if "XLA_FLAGS" in plan.environment and "XLA_FLAGS" in os.environ:
        environment["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} {plan.environment['XLA_FLAGS']}"
    if (before := os.environ.get("PYTHONPATH")) and "PYTHONPATH" in plan.environment:
        environment["PYTHONPATH"] = plan.environment["PYTHONPATH"] + os.pathsep + before

    def start() -> list[Started]:
        commands = plan.processes(str(free_port()))
        pairs = zip(commands, plan.logs, strict=True)
        return [Started(command.words, log, environment) for command, log in pairs]

    setup = [Started(c.words, plan.job.files / "logs" / "setup.log", environment)
             for c in plan.setup]  # fmt: skip
    if setup and (code := supervise(lambda: setup, 0, options.grace, say)):
        say(f"the setup ended with exit code {code}; see {setup[0].log}")
        return code
    code = supervise(start, options.restarts, options.grace, say)
    say(f"logs: {plan.job.files / 'logs'}; run folder: {plan.job.run}; exit code {code}")
    return code
