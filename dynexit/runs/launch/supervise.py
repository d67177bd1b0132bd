"""Processes that train together on one machine: started, followed, stopped and restarted."""

import contextlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

STOPPED, PEER_LOST = 143, 142
FORWARDED = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
)
LOOK = 0.1  # seconds between two looks at the processes
LAST_WORDS = 30.0  # seconds from SIGTERM to SIGKILL
BAR = 30.0  # seconds between two lines that show an unfinished progress bar


class Started(NamedTuple):
    """A process to start: its words, the file that its output is appended to, its environment."""

    words: Sequence[str]
    log: Path
    environment: Mapping[str, str]


def supervise(
    start: Callable[[], Sequence[Started]],
    restarts: int,
    grace: float,
    say: Callable[[str], None],
) -> int:
    """Runs processes until they finish, fail, or were stopped more often than `restarts`.

    They are started again, all of them, if none failed and one was stopped by a signal or lost a
    peer (exit codes of at least 128), unless this process got a signal itself.

    Args:
      start: what to start, called at each start.
      restarts: starts after the first.
      grace: seconds after one process ended with an error until the others are stopped.
      say: gets the processes' output, with `0|` before each line of the first, and one line for
        each restart.

    Returns:
      The worst exit code of the last start, see `worst`.
    """
    for attempt in range(restarts + 1):
        received, codes = _once(start(), grace, say)
        code = worst(codes)
        if received or code < 128 or attempt == restarts:
            return code
        say(f"exit codes {', '.join(map(str, codes))}; restart {attempt + 1} of {restarts}")
    raise AssertionError("unreachable")


def worst(codes: Sequence[int]) -> int:
    """The exit code that counts: a failure (1..127), then a kill, then a stop, then 0.

    Example:
      >>> worst([0, 143]), worst([143, 142]), worst([142, 137]), worst([137, 1]), worst([1, 2])
      (143, 143, 137, 1, 2)
    """
    rank = lambda code: 0 if code == 0 else 3 if code < 128 else 1 if code in (142, 143) else 2
    return max(codes, key=lambda code: (rank(code), code))


def free_port() -> int:
    """A TCP port that is free on this machine now."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def _once(
    started: Sequence[Started], grace: float, say: Callable[[str], None]
) -> tuple[list[int], list[int]]:
    """Runs all processes to their end; the signals that came in, and the exit codes."""
    processes: list[subprocess.Popen[bytes]] = []
    logs = [_Log(each.log, f"{k}| " if len(started) > 1 else "") for k, each in enumerate(started)]

    def forward(number: int) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    with _signals(forward) as received:
        processes += [_process(each) for each in started]
        for number in list(received):  # came between two starts
            forward(number)
        terminate = kill = float("inf")
        while any(process.poll() is None for process in processes):
            time.sleep(LOOK)
            for log in logs:
                log.follow(say)
            now = time.monotonic()
            if terminate == float("inf") and any(process.poll() for process in processes):
                terminate, kill = now + grace, now + grace + LAST_WORDS
            if now >= kill:
                forward(getattr(signal, "SIGKILL", signal.SIGTERM))
            elif now >= terminate:
                say(f"one process has ended; the others are stopped after {grace:g} s")
                forward(signal.SIGTERM)
                terminate = kill
    for log in logs:
        log.follow(say, last=True)
    codes = [process.returncode for process in processes]
    return received, [128 - code if code < 0 else code for code in codes]


def _process(started: Started) -> subprocess.Popen[bytes]:
    """A process whose output goes to a file, in a session of its own: the terminal's Ctrl-C comes
    through this process, once.
    """
    started.log.parent.mkdir(parents=True, exist_ok=True)
    with started.log.open("ab") as log:
        return subprocess.Popen(
            started.words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(started.environment),
            start_new_session=True,
        )


@contextlib.contextmanager
def _signals(forward: Callable[[int], None]) -> Generator[list[int], None, None]:
    """A context in which signals are forwarded and collected."""
    received: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        received.append(number)
        forward(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handler) for number in FORWARDED}
    try:
        yield received
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


class _Log:
    """Follows a log file from its end now; of a progress bar only what it showed last."""

    def __init__(self, path: Path, prefix: str):
        self._path, self._prefix = path, prefix
        self._place = path.stat().st_size if path.exists() else 0
        self._rest = b""
        self._said = time.monotonic()

    def follow(self, say: Callable[[str], None], last: bool = False) -> None:
        """Says the lines that were added; with `last`, an unfinished one too."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._place)
            added = file.read()
        self._place += len(added)
        *lines, self._rest = (self._rest + added).split(b"\n")
        if last and self._rest:
            lines, self._rest = [*lines, self._rest], b""
        elif b"\r" in self._rest and time.monotonic() > self._said + BAR:
            lines.append(self._rest)
        for line in lines:
            text = line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]
            say(f"{self._prefix}{text}")
            self._said = time.monotonic()
