"""Process 0 connects all processes: it counts who has come, passes values on, and sees who is lost.

Loads no JAX.
"""

import contextlib
import selectors
import socket
import threading
import time
from typing import Any

from dynexit.core.processes.wire import Connection, Message, Process

BEAT = 2.0
"""Seconds between two signs of life."""
SILENCE = 25.0
"""Seconds without one after which a process is lost."""
LOOK = 0.5  # seconds at most between two looks at the clock


class Hub:
    """The thread of process 0 that connects the processes.

    Args:
      server: a socket that listens at the coordinator's address.
      count: how many processes there are.
      deadline: `time.monotonic()` until which all must have come.
      about: further content of the message that all have come.
    """

    def __init__(self, server: socket.socket, count: int, deadline: float, about: Message):
        self._server, self._count, self._deadline, self._about = server, count, deadline, about
        self._new: set[Connection] = set()
        self._members: dict[int, tuple[Connection, Process]] = {}
        self._left: set[int] = set()
        self._exchanges: dict[str, dict[int, Any]] = {}
        self._until: dict[str, float] = {}
        self._started = self._over = False
        server.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(server, selectors.EVENT_READ)
        self._own = threading.Thread(target=self._run, name="hub", daemon=True)

    def start(self) -> None:
        self._own.start()

    def join(self, timeout: float) -> None:
        """Waits until all processes have left."""
        self._own.join(timeout)

    def stop(self) -> None:
        """Ends the thread; the connections are closed."""
        self._over = True
        self.join(5.0)

    def add(self, end: socket.socket) -> None:
        """Adds a connection; from other threads only before `start`."""
        connection = Connection(end)
        self._new.add(connection)
        self._selector.register(connection, selectors.EVENT_READ)

    def _run(self) -> None:
        beaten = 0.0
        while not self._over:
            self._receive()
            now = time.monotonic()
            if now > beaten + BEAT:
                beaten = now
                missing = [rank for rank in range(self._count) if rank not in self._members]
                self._tell("beat", missing=missing, here=self._here())
            self._look_at_the_clock(now)
        for connection in [*self._new, *(known for known, _ in self._members.values())]:
            self._close(connection)
        self._selector.close()
        with contextlib.suppress(OSError):
            self._server.close()

    def _receive(self) -> None:
        for key, _ in self._selector.select(LOOK):
            ready = key.fileobj
            if not isinstance(ready, Connection):
                with contextlib.suppress(OSError):
                    self.add(self._server.accept()[0])
                continue
            messages = ready.receive()
            for message in messages or ():
                rank = self._rank_of(ready)
                if rank is not None:
                    self._handle(rank, message)
                elif ready in self._new:
                    self._admit(ready, message)
            if messages is None:
                self._ended(ready, self._rank_of(ready))

    def _rank_of(self, connection: Connection) -> int | None:
        members = self._members.items()
        return next((rank for rank, (known, _) in members if known is connection), None)

    def _admit(self, connection: Connection, message: Message) -> None:
        """A new connection says which process it is."""
        try:
            who = Process(int(message["rank"]), str(message["host"]), int(message["pid"]))
            count, key = int(message["count"]), message["key"]
        except (KeyError, TypeError, ValueError):
            self._ended(connection, None)
            return
        if key == "probe":  # process 0 tries whether its address leads to itself
            connection.send("probed", token=self._about.get("token"))
            return
        refusal = None
        if count != self._count:
            refusal = f"it was started with {count} processes and process 0 with {self._count}"
        elif who.rank in self._members:
            refusal = f"there is a {self._members[who.rank][1]} already"
        elif self._started or not 0 <= who.rank < self._count:
            refusal = "the processes have started without it"
        if refusal is not None:
            connection.send("refused", why=f"{who} is refused: {refusal}")
            self._ended(connection, None)
            return
        self._new.discard(connection)
        self._members[who.rank] = connection, who
        if len(self._members) == self._count:
            self._started = True
            self._tell("start", here=self._here(), **self._about)

    def _handle(self, rank: int, message: Message) -> None:
        kind = message["kind"]
        if kind == "exchange":
            name = str(message["name"])
            given = self._exchanges.setdefault(name, {})
            given[rank] = message["value"]
            if message["timeout"] is not None:
                self._until.setdefault(name, time.monotonic() + float(message["timeout"]))
            if len(given) == self._count:
                self._until.pop(name, None)
                values = [given[r] for r in range(self._count)]
                del self._exchanges[name]
                self._tell("exchanged", name=name, values=values)
        elif kind == "ask" and 0 in self._members:
            self._members[0][0].send("asked", code=message["code"])
        elif kind == "announce" and rank == 0:
            self._tell("stop", point=message["point"], code=message["code"])
        elif kind in ("bye", "failed"):
            self._left.add(rank)
            if kind == "failed":
                code, why = message["code"], message["why"]
                self._tell("failed", who=self._members[rank][1], code=code, why=why)
            self._over = len(self._left) == self._count

    def _ended(self, connection: Connection, rank: int | None) -> None:
        self._close(connection)
        if rank is None:
            return
        _, who = self._members.pop(rank)
        if self._started and rank not in self._left:
            self._lose(rank, who, "its connection was closed")

    def _close(self, connection: Connection) -> None:
        if connection in self._selector.get_map():
            self._selector.unregister(connection)
        self._new.discard(connection)
        connection.close()

    def _lose(self, rank: int, who: Process, why: str) -> None:
        self._left.add(rank)
        self._tell("lost", who=who, why=why)
        self._over = len(self._left) == self._count

    def _look_at_the_clock(self, now: float) -> None:
        if not self._started and now > self._deadline:
            missing = [rank for rank in range(self._count) if rank not in self._members]
            self._tell("missing", missing=missing, here=self._here())
            self._over = True
        for name, end in list(self._until.items()):
            if now > end:
                del self._until[name]
                given = self._exchanges.pop(name, {})
                late = [who for rank, (_, who) in self._members.items() if rank not in given]
                self._tell("late", name=name, who=late)
        if self._started:
            for rank, (connection, who) in list(self._members.items()):
                if now > connection.heard + SILENCE and rank not in self._left:
                    del self._members[rank]
                    self._close(connection)
                    self._lose(rank, who, f"nothing was heard from it for {SILENCE:g} s")

    def _here(self) -> list[Process]:
        return [self._members[rank][1] for rank in sorted(self._members)]

    def _tell(self, kind: str, **content: Any) -> None:
        for rank, (connection, _) in sorted(self._members.items(), reverse=True):  # 0 last
            if rank not in self._left:
                connection.send(kind, **content)
