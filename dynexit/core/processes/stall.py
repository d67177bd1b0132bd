"""Says when no update has been made for a long time, and what training was doing."""

import threading
import time
from collections.abc import Callable


class StallWatch:
    """A context whose thread says that updates have stalled, once in every `minutes` of a stall.

    Args:
      minutes: without an update until it is said; 0 for never.
      say: gets the line.

    Example:
      >>> with StallWatch(10, print) as watch:
      ...     watch.at("waiting for update 1", update=True)
    """

    def __init__(self, minutes: float, say: Callable[[str], None]):
        self._seconds, self._say = 60 * minutes, say
        self._what, self._since = "starting", time.monotonic()
        self._updated = self._said = self._since
        self._over = threading.Event()

    def __enter__(self) -> "StallWatch":
        if self._seconds > 0:
            threading.Thread(target=self._run, name="stall", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()

    def at(self, what: str, update: bool = False) -> None:
        """Notes what training does now, and whether an update has just been made."""
        self._what, self._since = what, time.monotonic()
        if update:
            self._updated = self._said = self._since

    def _run(self) -> None:
        while not self._over.wait(min(1.0, self._seconds / 4)):
            now = time.monotonic()
            if now - self._said < self._seconds:
                continue
            self._said = now
            self._say(
                f"WARNING: no update for {(now - self._updated) / 60:.1f} minutes; training is "
                f"{self._what} since {now - self._since:.0f} s"
            )
