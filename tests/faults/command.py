"""Runs of the `dynexit` command as processes of their own, to be stopped, killed and compared.

They are forked from a process that has imported JAX but has started no backend, so a start costs
a second and not four.
"""

import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

TOY = Path(__file__).with_name("toy_run.py")
PATIENCE = 300.0  # seconds that anything may take on a busy machine

_environment = {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "MPLBACKEND": "agg",
}
_context = None


def _start_method():
    global _context, _programs
    if _context is None:
        for name, value in _environment.items():
            os.environ.setdefault(name, value)
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            _programs = tempfile.TemporaryDirectory(prefix="dynexit-programs-")
            os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
        _context = multiprocessing.get_context("forkserver")
        _context.set_forkserver_preload(["faults.preload"])
    return _context


class Run:
    """A command that runs, and the file that holds its output."""

    def __init__(self, words, cwd, log, environment):
        self.log, self.began = Path(log), time.monotonic()
        arguments = ([str(word) for word in words], str(cwd), str(log), environment)
        self._process = _start_method().Process(target=_child, args=arguments)
        self._process.start()

    @property
    def pid(self):
        return self._process.pid

    @property
    def alive(self):
        return self._process.is_alive()

    def send(self, number):
        os.kill(self.pid, number)

    def kill(self):
        if self.alive:
            self.send(signal.SIGKILL)
        return self.wait()

    def wait(self, seconds=PATIENCE):
        """The exit code, 128 + n after signal n; None and a kill where it takes longer."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            return None
        code = self._process.exitcode
        return 128 - code if code < 0 else code

    def text(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def _child(words, cwd, log, environment):
    os.chdir(cwd)
    os.environ.update({"XLA_FLAGS": "--xla_force_host_platform_device_count=1", **environment})
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    _kill_streams(environment.get("DEAD_STREAMS"))
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from dynexit.cli.main import main

    sys.exit(main(words))


def _kill_streams(kind):
    """Standard streams become pipes without a reader, or are closed."""
    if kind == "closed":
        os.close(1)
        os.close(2)
    elif kind is not None:
        reader, writer = os.pipe()
        for standard in {"stdout": (1,), "stderr": (2,), "both": (1, 2)}[kind]:
            os.dup2(writer, standard)
        os.close(reader)
        os.close(writer)


def train(folder, *words, log=None, delay=0.0, devices=1, slow_evaluation=0.0):
    """Starts `dynexit train` in a run folder; each batch of the toy takes `delay` seconds.

    With `slow_evaluation` each batch of an evaluation takes so many seconds; see `reads`.
    """
    folder = Path(folder)
    log = log or folder.with_name(f"{folder.name}.log")
    arguments = ["train", TOY, "--run", folder, *words]
    environment = {"TOY_DELAY": str(delay)}
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    if slow_evaluation:
        reads = {"TOY_READS": f"{log}.reads", "TOY_EVAL_DELAY": str(slow_evaluation)}
        environment |= reads
    return Run(arguments, folder.parent, log, environment)


def reads(run):
    """How many batches of the calibration split a run with `slow_evaluation` has read."""
    path = Path(f"{run.log}.reads")
    return path.read_text().count("\n") if path.exists() else 0


def pair(folder, *words, folders=None, count=2, ranks=None, **named):
    """Starts processes that train together in one folder, or each in its own."""
    port = free_port()
    started = []
    for rank in ranks or range(count):
        own = Path(folders[rank] if folders else folder)
        log = own.with_name(f"{own.name}-{rank}.log")
        where = ["--coordinator", f"localhost:{port}", "--processes", count, "--process", rank]
        started.append(train(own, *where, *words, log=log, **named))
    return started


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def until(condition, seconds=PATIENCE, look=0.01):
    """Waits for a condition; returns what it was in the end."""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(look)
    return found


def saved(folder):
    """Steps of the complete checkpoints."""
    found = Path(folder).glob("checkpoints/*/manifest.json")
    return sorted(int(path.parent.name) for path in found if path.parent.name.isdigit())


def recorded(folder):
    """The last step in metrics.jsonl, 0 without one."""
    path = Path(folder) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    for line in reversed(lines):
        try:
            return json.loads(line)["step"]
        except ValueError:
            continue
    return 0


def records(folder):
    """The records of metrics.jsonl without their times."""
    from dynexit.training.logs import read_records, without_clock

    return [without_clock(record) for record in read_records(Path(folder) / "metrics.jsonl")]


def bits(folder, step):
    """What identifies every bit of a checkpoint: names, shapes, types and sha256 of its leaves."""
    path = Path(folder) / "checkpoints" / f"{step:08d}" / "manifest.json"
    manifest = json.loads(path.read_text())
    return manifest["leaves"], sorted(manifest["slices"])


def finish_training(runs, folder, step):
    """Waits for the checkpoint of the last step, and ends the processes before they evaluate."""
    done = until(lambda: step in saved(folder) or not any(run.alive for run in runs))
    for run in runs:
        run.kill()
    return bool(done) and step in saved(folder)


class Result(NamedTuple):
    """What a fault showed: how often it went right, of how many, and what went wrong."""

    name: str
    wanted: int
    got: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def good(self):
        return self.got == self.wanted


def counted(name, cases):
    """Runs cases, functions that return None or what went wrong, one after the other."""
    began, wrong, total = time.monotonic(), [], 0
    for case in cases:
        total += 1
        if (what := case()) is not None:
            wrong.append(what)
    return Result(name, total, total - len(wrong), time.monotonic() - began, tuple(wrong))
