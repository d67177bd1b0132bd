"""The connection of a process to process 0: values that all exchange, and the loss of a peer.

Loads no JAX.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from dynexit.core.processes.hub import BEAT, LOOK, SILENCE
from dynexit.core.processes.wire import Connection, Message, Process

STOP = "stop"  # the exchange by which all say that they know when to stop


class ProcessMissing(RuntimeError):
    """Not all processes came to a point in time; the message names those that did not."""


class Member:
    """A process' place among all that train together.

    Args:
      connection: to process 0, which has admitted this process.
      processes: all, by rank.
      rank: of this one.
      lost: called with a process and what happened where a peer died.
      failed: called with a process, its exit code and its message where a peer failed.

    Attributes:
      processes, rank: as given.
      asked: called on process 0 with an exit code where a process was asked to stop.
      stop: called on all with the point to stop at, None for at once, and an exit code.
    """

    def __init__(
        self,
        connection: Connection,
        processes: Sequence[Process],
        rank: int,
        lost: Callable[[Process, str], None],
        failed: Callable[[Process, int, str], None],
    ):
        self.processes, self.rank = tuple(processes), rank
        self.asked: Callable[[int], None] = lambda code: None
        self.stop: Callable[[int | None, int], None] = lambda point, code: None
        self._connection, self._lost, self._failed = connection, lost, failed
        self._done: dict[str, Message] = {}
        self._times: dict[str, int] = {}
        self._changed, self._left = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="member", daemon=True)
        self._thread.start()

    @property
    def own(self) -> Process:
        """This process."""
        return self.processes[self.rank]

    def exchange(self, name: str, value: Any = None, timeout: float | None = 60.0) -> list[Any]:
        """The values of all processes, by rank; it waits until all have called.

        All processes call with the same names in the same order.

        Args:
          name: what the message says is waited for.
          value: this process' value, which JSON can hold.
          timeout: seconds until the first that waits gives up; None waits for ever.

        Raises:
          ProcessMissing: some did not come in time; they are named.
        """
        key = f"{name}#{self._times.get(name, 0)}"
        self._times[name] = self._times.get(name, 0) + 1
        self._connection.send("exchange", name=key, value=value, timeout=timeout)
        with self._changed:
            while key not in self._done:
                self._changed.wait(LOOK)  # short, so that signals are handled
            message = self._done.pop(key)
        if message["kind"] == "late":
            late = ", ".join(str(Process(*each)) for each in message["who"])
            raise ProcessMissing(f"{late} did not come to {name!r} within {timeout:g} s")
        return message["values"]

    def ask_stop(self, code: int) -> None:
        """Asks process 0 to stop all processes, with an exit code."""
        self._connection.send("ask", code=code)

    def announce_stop(self, point: int | None, code: int) -> None:
        """On process 0: stops all at a point, or at once for None; waits until all know."""
        self._connection.send("announce", point=point, code=code)
        with self._changed:
            while STOP not in self._done:
                self._changed.wait(LOOK)

    def leave(self, code: int = 0, why: str = "") -> None:
        """Says that this process ends: 0 in good order, else that it failed, and why."""
        self._left = True
        if code:
            self._connection.send("failed", code=code, why=why)
        else:
            self._connection.send("bye")

    def close(self) -> None:
        """Closes the connection and ends the thread; call it after `leave`."""
        self._left = True
        self._connection.close()
        self._thread.join(2 * LOOK)

    def _run(self) -> None:
        beaten = 0.0
        while True:
            messages = self._connection.receive(LOOK)
            for message in messages or ():
                self._handle(message)
            if messages is None:
                self._end("its connection was closed")
                return
            now = time.monotonic()
            if now > self._connection.heard + SILENCE:
                self._end(f"nothing was heard from it for {SILENCE:g} s")
                return
            if now > beaten + BEAT:
                beaten = now
                self._connection.send("beat")

    def _end(self, why: str) -> None:
        if not self._left:
            self._lost(self.processes[0], why)

    def _handle(self, message: Message) -> None:
        kind = message["kind"]
        if kind in ("exchanged", "late"):
            with self._changed:
                self._done[message["name"]] = message
                self._changed.notify_all()
        elif kind == "asked":
            self.asked(message["code"])
        elif kind == "stop":
            self.stop(message["point"], message["code"])
            self._connection.send("exchange", name=STOP, value=None, timeout=None)
        elif kind == "lost" and not self._left:
            self._lost(Process(*message["who"]), message["why"])
        elif kind == "failed" and not self._left:
            self._failed(Process(*message["who"]), message["code"], message["why"])
