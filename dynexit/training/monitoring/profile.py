"""Traces of a few updates, by `jax.profiler`."""

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from dynexit.core.shapes import PyTree

FOLDER = "profile"
SKIPPED = 2
"""Updates that are not traced: the first compiles, the second fills the queue of the device."""


class Profiler:
    """Traces `count` updates after those that compile. A context.

    The scopes in the trace are `augment`, `embed`, `block`, `exit`, `objective`, `criterion` and
    `optimizer`, and one named `update` for each update. A profiler that cannot start is a warning.

    Args:
      folder: the run's; the trace is in `folder/profile`.
      count: updates to trace; 0 for none.
      first: updates made before.
      steps: updates to be made in all.
      say: gets the line that says where the trace is.
    """

    def __init__(
        self, folder: Path, count: int, first: int, steps: int, say: Callable[[str], None]
    ):
        self._folder, self._say = folder / FOLDER, say
        self._begin = max(min(first + SKIPPED, steps - 1), first)
        self._end = min(self._begin + count, steps)
        self._tracing = False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._tracing:
            self._stop(self._end)

    def update(self, done: int) -> contextlib.AbstractContextManager[Any]:
        """The context in which update `done + 1` is dispatched."""
        if done == self._begin < self._end:
            self._start()
        if not self._tracing:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("update", step_num=done + 1)

    def after(self, done: int, metrics: PyTree) -> None:
        """Ends the trace after its last update, which is waited for.

        Args:
          done: updates dispatched.
          metrics: of the last one.
        """
        if self._tracing and done == self._end:
            jax.block_until_ready(metrics)
            self._stop(done)

    def _start(self) -> None:
        try:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._tracing = True
        except RuntimeError as error:  # another profile runs
            warnings.warn(f"no profile is written: {error}", RuntimeWarning, stacklevel=2)

    def _stop(self, done: int) -> None:
        self._tracing = False
        jax.profiler.stop_trace()
        self._say(
            f"profile of updates {self._begin + 1} to {done}: {self._folder}; open it with "
            f"`xprof --logdir {self._folder}` (pip install xprof), or drop its "
            "perfetto_trace.json.gz on https://ui.perfetto.dev"
        )
