"""SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C stop a run: after the running update, or the running batch of
an evaluation, where updates would be lost; at once elsewhere.
"""

import signal
import socket
import threading
from types import FrameType

from dynexit.core.processes.member import Member
from dynexit.core.processes.start import end_together, exit_now

STOPPED, INTERRUPTED = 143, 130
CODES = {
    getattr(signal, name): code
    for name, code in (
        ("SIGTERM", STOPPED),
        ("SIGHUP", STOPPED),
        ("SIGUSR1", STOPPED),
        ("SIGINT", INTERRUPTED),
    )
    if hasattr(signal, name)
}
AHEAD = 2
"""Points after which all processes stop. A point lies before each dispatch of an update, or of a
batch of an evaluation. Process 0 announces the stop at its point p, before the dispatch there. The
others wait for the results of a dispatch after the next one, so they have passed point p + 1 at
most."""


class Stopped(Exception):
    """A stop was requested within an evaluation."""


class StopRequest:
    """A context in which signals request a stop.

    The previous handlers are restored at the end; the previous handler receives a second Ctrl-C.
    SIGHUP that is ignored, as under `nohup`, stays ignored. Python delivers signals to the main
    thread only; in any other thread the context catches none.

    Args:
      at_once: end the process, with `code`, where nothing would be lost, also while the main thread
        compiles; otherwise only set `requested`.

    Attributes:
      requested: whether to stop.
      code: the exit code, 143 or 130 for Ctrl-C; 0 without a request.
      point: the point at which several processes stop together; None where none is agreed.
      unsaved: whether there are updates that no checkpoint has. Training sets it.
      hint: what the message at the end says.
    """

    def __init__(self, at_once: bool = False):
        self.requested, self.code, self.hint = False, 0, ""
        self.point: int | None = None
        self.unsaved = False
        self._passed = 0  # points
        self._at_once = at_once
        self._member: Member | None = None
        self._before = {}
        self._pipe: tuple[socket.socket, socket.socket] | None = None
        self._wakeup = -1

    def attach(self, member: Member | None) -> None:
        """Stops together with other processes: process 0 decides for all."""
        if member is not None:
            member.asked, member.stop = self._asked, self._announced
            self._member = member

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._pipe = socket.socketpair()
            self._pipe[1].setblocking(False)
            self._wakeup = signal.set_wakeup_fd(self._pipe[1].fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=self._pipe[:1], daemon=True).start()
            for number in CODES:
                if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        while self._before:
            self._restore(next(iter(self._before)))
        if self._pipe is not None:
            signal.set_wakeup_fd(self._wakeup)
            for end in self._pipe[::-1]:  # the thread ends when the writing end is closed
                end.close()
            self._pipe = None

    def should_stop(self) -> bool:
        """Whether to stop here; all processes stop at the same one of their calls.

        Call it before each dispatch. All processes make the same calls, and wait for the results of
        a dispatch after the next one at the latest.
        """
        if self._member is None:
            return self.requested
        self._passed += 1
        if self._member.rank == 0 and self.requested and self.point is None:
            self._member.announce_stop(self._passed + AHEAD, self.code)
        return self.point is not None and self._passed >= self.point

    def check(self) -> None:
        """A point within an evaluation, see `should_stop`.

        Raises:
          Stopped: to be stopped here.
        """
        if self.should_stop():
            raise Stopped

    def saved(self) -> None:
        """All updates are in checkpoints now; a request that came too late for the loop acts."""
        self.unsaved = False
        if self.requested and self._member is not None and self.point is None:
            self._asked(self.code)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Runs in the main thread, between two operations of Python."""
        if number == signal.SIGINT:
            self._restore(number)
        if self._member is None:
            self._request(CODES[signal.Signals(number)])

    def _watch(self, end: socket.socket) -> None:
        """Sees signals also while the main thread is in native code."""
        while True:
            try:
                numbers = end.recv(64)
            except OSError:
                return
            if not numbers:
                return
            for number in numbers:
                if number in CODES:
                    self._seen(CODES[signal.Signals(number)])

    def _seen(self, code: int) -> None:
        if self._member is not None:
            self._member.ask_stop(code)
            return
        self._request(code)
        if self._ends_here():
            exit_now(self.code, self._line())

    def _asked(self, code: int) -> None:
        """On process 0: a process received a signal."""
        assert self._member is not None
        self._request(code)
        if self._member.rank == 0 and self._ends_here():
            self._member.announce_stop(None, self.code)

    def _announced(self, point: int | None, code: int) -> None:
        """On all processes: process 0 has decided."""
        self.code = code
        if point is None:
            end_together(code, self._line())
        self.point, self.requested = point, True

    def _request(self, code: int) -> None:
        if not self.requested:
            self.requested, self.code = True, code

    def _ends_here(self) -> bool:
        return self._at_once and not self.unsaved

    def _line(self) -> str:
        name = "Ctrl-C" if self.code == INTERRUPTED else "a signal"
        return f"dynexit: stopped by {name}{self.hint}"

    def _restore(self, number: int) -> None:
        before = self._before.pop(number, None)
        if before is not None:  # None: set by C code, which Python cannot restore
            signal.signal(number, before)
