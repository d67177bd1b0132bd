"""Messages between processes: JSON objects, one a line, over a socket. Loads no JAX."""

import contextlib
import json
import selectors
import socket
import threading
import time
from typing import Any, NamedTuple

LONGEST = 2**24  # bytes of one message
PATIENCE = 10.0  # seconds that a send may take

Message = dict[str, Any]


class Process(NamedTuple):
    """A process of a run: its number, its host and its process id there.

    Example:
      >>> str(Process(1, "worker-1", 4711))
      'process 1 (host worker-1, pid 4711)'
    """

    rank: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.rank} (host {self.host}, pid {self.pid})"


class Connection:
    """A socket that carries messages. Any thread may send; one thread receives.

    Attributes:
      heard: `time.monotonic()` of the last message.
    """

    def __init__(self, end: socket.socket):
        end.settimeout(PATIENCE)
        with contextlib.suppress(OSError):  # a socket pair has no TCP
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.heard = time.monotonic()
        self._end, self._rest, self._sending = end, b"", threading.Lock()

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, kind: str, **content: Any) -> bool:
        """Sends a message; returns whether the other end may still receive it."""
        line = json.dumps({"kind": kind, **content}).encode() + b"\n"
        try:
            with self._sending:
                self._end.sendall(line)
        except OSError:
            return False
        return True

    def receive(self, wait: float = 0.0) -> list[Message] | None:
        """The messages that have come, none yet, or None where the connection has ended.

        Args:
          wait: seconds to wait for the first.
        """
        try:
            if not _readable(self._end, wait):
                return []
            added = self._end.recv(2**16)
        except (OSError, ValueError):  # a closed socket has no number
            return None
        *lines, self._rest = (self._rest + added).split(b"\n")
        if not added or len(self._rest) > LONGEST:
            return None
        self.heard = time.monotonic()
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            return None  # not one of ours
        return messages if all(isinstance(m, dict) and "kind" in m for m in messages) else None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
        self._end.close()


def _readable(end: socket.socket, wait: float) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(end, selectors.EVENT_READ)
        return bool(selector.select(wait))
