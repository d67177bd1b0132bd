"""SIGTERM and SIGINT request a stop at the next step."""

import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """A context in which SIGTERM, and the first SIGINT, only set `requested`; the previous handler
    receives a second SIGINT.

    The previous handlers are restored at the end. Python delivers signals to the main thread only;
    in any other thread the context changes nothing and `requested` stays False.

    Args:
      catch: False to change no handler; with several processes jax.distributed catches SIGTERM for
        all of them.
    """

    def __init__(self, catch: bool = True):
        self.requested = False
        self._catch = catch and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if self._catch:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        while self._before:
            self._restore(next(iter(self._before)))

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if number == signal.SIGINT:
            self._restore(number)

    def _restore(self, number: int) -> None:
        before = self._before.pop(number, None)
        if before is not None:  # None: set by C code, which Python cannot restore
            signal.signal(number, before)
