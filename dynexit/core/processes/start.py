"""Starts the processes of a run: they find one another, then JAX connects their devices.

Process 0 listens at the coordinator's address. The others connect to it, say who they are, and wait
until all have come. Only then JAX's own service starts, on another port of the same host, so that
whoever is missing can be named.
"""

import contextlib
import ctypes
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from dynexit.core.files import discard_drafts
from dynexit.core.processes.cluster import Place
from dynexit.core.processes.hub import Hub
from dynexit.core.processes.member import Member, ProcessMissing
from dynexit.core.processes.wire import Connection, Message, Process

PEER_LOST = 142
GRACE = 25.0  # seconds in which a process ends by itself after another has failed
LOOPBACK = ("localhost", "127.0.0.1", "::1")

_joined: list[Member] = []  # at most one
_hubs: list[Hub] = []


def current() -> Member | None:
    """This process' place among those that `join` has connected, or None."""
    return _joined[0] if _joined else None


def broadcast(value: Any, name: str, timeout: float | None = 60.0) -> Any:
    """Process 0's value, on all processes; JSON can hold it. All must call it."""
    member = current()
    return value if member is None else member.exchange(name, value, timeout)[0]


def join(place: Place, timeout: float, log: Callable[[str], None]) -> Member:
    """Connects this process with the others, and JAX with them.

    Call it before anything starts a JAX backend.

    Args:
      place: the coordinator's address, how many processes there are, and which this is.
      timeout: seconds until all must have come.
      log: gets one line with address, timeout, rank and host, and one when all have come.

    Returns:
      The process' place among them. When another dies, this process ends with code 142 and one
      line that names it.

    Raises:
      ProcessMissing: not all came in time; the message names who came and who did not.
      ValueError: the address is no HOST:PORT, or the processes differ about their number.
    """
    own = Process(place.process, socket.gethostname(), os.getpid())
    hub, connection, message = meet(place, own, timeout, log)
    processes = [Process(*each) for each in message["here"]]
    member = Member(connection, processes, own.rank, _lost, _failed)
    _joined[:] = [member]
    _hubs[:] = [] if hub is None else [hub]
    _outlive_abort()
    _connect_jax(int(message["port"]), place)
    others = ", ".join(f"{p.rank} on {p.host}" for p in processes[:16])
    log(f"all {len(processes)} processes are connected: {others}")
    return member


def meet(
    place: Place, own: Process, timeout: float, log: Callable[[str], None]
) -> tuple[Hub | None, Connection, Message]:
    """Waits until all processes have come; JAX is not involved.

    Args:
      place, timeout, log: as in `join`.
      own: this process.

    Returns:
      On process 0 the hub; the connection to process 0; its message, with the processes.
    """
    host, port = _parsed(place.coordinator)
    log(
        f"{own} of {place.processes} ({place.source}): process 0 is at {host}:{port}, "
        f"timeout {timeout:g} s"
    )
    until = time.monotonic() + timeout
    counted = until - min(1.0, 0.1 * timeout)  # those who came are informed in time
    hub = _hub(host, port, place, counted) if own.rank == 0 else None
    try:
        connection, message = _admitted(host, port, place, own, until, log)
    except BaseException:
        if hub is not None:
            hub.stop()
        raise
    return hub, connection, message


def leave(code: int, why: str = "") -> None:
    """Ends the connection with the other processes.

    With code 0, and where all were stopped, all must call it. Otherwise this process exits here,
    with `code`, after the others were informed.
    """
    member = current()
    if member is None:
        return
    import jax

    if code and code < 128:
        member.leave(code, why)
        time.sleep(0.2)  # the message is under way
        if member.rank == 0:
            time.sleep(1.0)  # the hub passes it on
        exit_now(code)
    member.exchange("end", None, 300.0)
    jax.distributed.shutdown()
    member.leave()
    for hub in _hubs:
        hub.join(10.0)
    member.close()
    _joined.clear()
    _hubs.clear()


def end_together(code: int, line: str) -> NoReturn:
    """Ends this process at once, with a line, where all do; process 0 ends last."""
    if (member := current()) is not None:
        member.leave()
    for hub in _hubs:
        hub.join(3.0)
    exit_now(code, line)


def wait_for_verdict(seconds: float = 5.0) -> None:
    """After an error that a lost peer may have caused: this process is ended if one was lost."""
    if current() is not None:
        time.sleep(seconds)


def exit_now(code: int, line: str = "") -> NoReturn:
    """Ends the process at once, whatever its main thread does.

    `line` and output that was written before are shown where the streams take them in time;
    unfinished drafts of files are removed.
    """

    def last_words() -> None:
        if line:
            print(line, file=sys.stderr, flush=True)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()

    writer = threading.Thread(target=last_words, daemon=True)
    writer.start()
    discard_drafts()
    writer.join(2.0)
    os._exit(code)


def _lost(who: Process, why: str) -> NoReturn:
    member = current()
    own = f"{member.own} ends, and" if member is not None else "this process ends, and"
    exit_now(
        PEER_LOST,
        f"dynexit: {who} was lost: {why}; {own} the run can be resumed from its last checkpoint",
    )


def _failed(who: Process, code: int, why: str) -> None:
    time.sleep(GRACE if who.rank else 4.0)  # JAX aborts soon where process 0 has ended
    exit_now(code, f"dynexit: {who} failed with exit code {code}: {why}")


def _parsed(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"`coordinator` must be HOST:PORT, got {address!r}")
    return host.strip("[]"), int(port)


def _hub(host: str, port: int, place: Place, until: float) -> Hub:
    """Listens at the address, and reserves a port for JAX's service."""
    try:
        if host in LOOPBACK:
            server = socket.create_server(("127.0.0.1", port))
        elif socket.has_dualstack_ipv6():
            server = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            server = socket.create_server(("", port))
    except OSError as error:
        raise ValueError(
            f"`coordinator`: process 0 cannot listen at port {port} of {socket.gethostname()}: "
            f"{error.strerror or error}"
        ) from error
    about = {"port": _free_port(), "token": secrets.token_hex(8)}
    hub = Hub(server, place.processes, until, about)
    hub.start()
    if _token_at(host, port) not in (None, about["token"]):
        hub.stop()
        raise ValueError(
            f"`process`: another process 0 is at {host}:{port}; this host is "
            f"{socket.gethostname()}. Each process must have a number of its own"
        )
    return hub


def _token_at(host: str, port: int) -> str | None:
    """What process 0 at the address calls itself; None where it does not answer."""
    connection = _connected(host, port)
    if connection is None:
        return None
    connection.send("hello", rank=0, host="", pid=0, count=0, key="probe")
    messages = connection.receive(wait=2.0)
    connection.close()
    return next((m["token"] for m in messages or () if m["kind"] == "probed"), None)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def _admitted(
    host: str,
    port: int,
    place: Place,
    own: Process,
    until: float,
    log: Callable[[str], None],
) -> tuple[Connection, Message]:
    """Connects to process 0 and waits until all have come."""
    said, seen = time.monotonic(), Message()
    with contextlib.ExitStack() as stack:
        connection: Connection | None = None
        while time.monotonic() < until + 1.0:
            if connection is None:
                connection = _connected("127.0.0.1" if own.rank == 0 else host, port)
                if connection is None:
                    if time.monotonic() > until:
                        break
                    time.sleep(0.2)
                    continue
                stack.callback(connection.close)
                connection.send("hello", **own._asdict(), count=place.processes, key="hello")
            messages = connection.receive(wait=1.0)
            if messages is None:
                connection = None
            for message in messages or ():
                if message["kind"] == "start" and connection is not None:
                    stack.pop_all()
                    return connection, message
                if message["kind"] == "refused":
                    raise ValueError(f"`process`: {message['why']}")
                if message["kind"] == "missing":
                    raise ProcessMissing(_who_came(message, place))
                seen = message
            if seen and time.monotonic() > said + 30.0:
                said = time.monotonic()
                log(f"waiting: {_who_came(seen, place)}")
    if seen:
        raise ProcessMissing(_who_came(seen, place))
    raise ProcessMissing(
        f"process 0 did not answer at {host}:{port}; {own} came. Process 0 must run on {host}, and "
        "its port must be open"
    )


def _connected(host: str, port: int) -> Connection | None:
    try:
        return Connection(socket.create_connection((host, port), timeout=2.0))
    except OSError:
        return None


def _who_came(message: Message, place: Place) -> str:
    here = ", ".join(str(Process(*each)) for each in message["here"])
    missing = ", ".join(map(str, message["missing"]))
    return (
        f"process{'es' if len(message['missing']) > 1 else ''} {missing} of {place.processes} did "
        f"not come to {place.coordinator}; {here or 'none'} came"
    )


def _connect_jax(port: int, place: Place) -> None:
    import jax

    host, _ = _parsed(place.coordinator)
    # its service takes SIGTERM away from Python; `training.signals` stops all processes
    jax.config.update("jax_enable_preemption_service", False)
    local = host in LOOPBACK
    jax.distributed.initialize(
        f"{'127.0.0.1' if local else host}:{port}",
        place.processes,
        place.process,
        local_device_ids=place.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=60,
        coordinator_bind_address=f"127.0.0.1:{port}" if local else None,
    )


def _outlive_abort() -> None:
    """JAX aborts a process that loses process 0; let it wait until `_lost` has named it.

    The handler of SIGABRT becomes the C function `sleep`, which gets the signal's number, 6, as
    its argument; the thread that aborts then sleeps for six seconds.
    """
    with contextlib.suppress(AttributeError, OSError, ValueError):
        if os.name != "posix":
            return
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        libc.signal.restype = ctypes.c_void_p
        libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
