"""SIGTERM and SIGINT as a request to stop at the next step, instead of a death in the middle of
one.
"""

import signal
import threading
from types import FrameType


class StopRequest:
    """A context in which SIGTERM, and the first SIGINT, only set `requested`; a second SIGINT acts
    as before.

    The previous handlers come back on leaving. Python delivers signals to the main thread only; in
    any other thread the context changes nothing and `requested` stays False.

    Args:
      catch: False to leave the signals alone; with several processes jax.distributed catches
        SIGTERM for all of them.
    """

    def __init__(self, catch: bool = True):
        self.requested = False
        self._catch = catch and threading.current_thread() is threading.main_thread()
        self._before = {}

    def __enter__(self) -> "StopRequest":
        if self._catch:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception) -> None:
        while self._before:
            self._restore(next(iter(self._before)))

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if number == signal.SIGINT:
            self._restore(number)

    def _restore(self, number: int) -> None:
        before = self._before.pop(number, None)
        if before is not None:  # None: set by C code, which Python cannot put back
            signal.signal(number, before)
