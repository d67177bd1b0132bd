"""The state of the device suite: options, records, errors, clock and JSON file."""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from dynexit.bench.device.vit import SMALL, VIT_B16, Shape, disagreement, tolerance
from dynexit.core.shapes import Float

Record: TypeAlias = dict[str, Any]  # one entry of the JSON file


class State:
    """The state that the sections of the suite share.

    Args:
      out: path of the JSON file, or None to write none.
      small: whether to run in small form.
      seconds: the time budget.
      hardware: description of the machine, for the JSON file.

    Attributes:
      shape: sizes of the network.
      batches: batch sizes of the blocks section.
      means: mean depths, as fractions.
      queue, slots: rows of the stream, and numbers of slots.
      train_batch: rows of a training step.
      decoding_batches: rows that are decoded at once.
      rounds: interleaved timings of each program.
      limit: most seconds of the timed rounds of one measurement, after the third round.
      tile_sizes: number of tile sizes to measure: B, B/2, B/4, ...
      loop_iterations: of the loops over small bodies.
      records, errors, skipped: the contents of the JSON file.
    """

    def __init__(
        self, out: str | os.PathLike[str] | None, small: bool, seconds: float, hardware: Record
    ):
        self.out = None if out is None else Path(out)
        self.small, self.seconds, self.hardware = small, seconds, hardware
        self.shape: Shape = SMALL if small else VIT_B16
        self.batches = (8,) if small else (64, 256, 8)
        self.means = (0.5,) if small else (0.25, 0.5, 0.75)
        self.queue, self.slots = (16, (4,)) if small else (256, (32, 64, 128))
        self.train_batch = 4 if small else 32
        self.decoding_batches = (2,) if small else (64, 8, 1)
        self.rounds, self.limit = (3, 1.0) if small else (9, 8.0)
        self.tile_sizes = 2 if small else 5
        self.loop_iterations = 100 if small else 4000
        self.records: list[Record] = []
        self.errors: list[Record] = []
        self.skipped: list[Record] = []
        self._began = time.perf_counter()
        self._expected_end = 0.0

    def options(self) -> Record:
        """The options as entries of the JSON file."""
        names = "small seconds batches means queue slots train_batch decoding_batches rounds"
        names = [*names.split(), "loop_iterations"]
        return {"shape": self.shape._asdict()} | {name: getattr(self, name) for name in names}

    def elapsed(self) -> float:
        """Seconds since the suite began."""
        return time.perf_counter() - self._began

    def remaining(self) -> float:
        """Seconds of the budget that remain."""
        return self.seconds - self.elapsed()

    def expect(self, seconds: float) -> None:
        """Sets the expected remaining duration of the suite."""
        self._expected_end = self.elapsed() + seconds

    def log(self, line: str) -> None:
        """Prints a progress line on stderr, with the elapsed and the expected remaining time."""
        to_come = max(min(self._expected_end - self.elapsed(), self.remaining()), 0.0)
        text = f"[{self.elapsed():6.1f} s, about {to_come:.0f} s to go] {line}"
        print(text, file=sys.stderr, flush=True)

    def add(self, record: Record) -> None:
        """Adds a record and writes the file."""
        self.records.append(record)
        self.save()

    def fail(self, section: str, what: str, error: BaseException) -> None:
        """Records an error; the suite continues."""
        text = "".join(traceback.format_exception(error))[-3000:]
        summary = f"{type(error).__name__}: {error}"[:500]
        self.errors.append({"section": section, "what": what, "error": summary, "trace": text})
        self.log(f"FAILED {section}, {what}: {summary}")
        self.save()

    def skip(self, section: str, what: str, reason: str) -> None:
        """Records what was skipped, and the reason."""
        self.skipped.append({"section": section, "what": what, "reason": reason})
        self.log(f"skipped {section}, {what}: {reason}")
        self.save()

    def has_time(self, section: str, what: str, needed: float = 0.0) -> bool:
        """Whether more than `needed` seconds remain; if not, `what` is recorded as skipped."""
        if self.remaining() > needed:
            return True
        self.skip(section, what, f"the time budget of {self.seconds:g} s is exhausted")
        return False

    def attempt(self, section: str, what: str, build: Callable[[], Any]) -> Any:
        """Returns `build()`, or None if it fails, which is recorded, or if no time remains."""
        if not self.has_time(section, what):
            return None
        self.log(f"{section}: compiling {what}")
        try:
            return build()
        except Exception as error:
            self.fail(section, what, error)
            return None

    def agreement(
        self,
        section: str,
        what: str,
        found: Any,
        expected: Float[np.ndarray, "..."],
        dtype: str,
    ) -> Record:
        """Compares a program's outputs with those of `dx.run_all` at the same exits.

        Returns:
          `error`, relative to the largest entry, and `agrees`; a disagreement is recorded as an
          error.
        """
        error = disagreement(found, expected)
        allowed = tolerance(dtype)
        agrees = bool(error <= allowed)  # false for NaN
        if not agrees:
            text = f"outputs differ by {error:.3g} of the largest entry; {allowed:g} is allowed"
            self.fail(section, what, AssertionError(text))
        return {"error": error if np.isfinite(error) else None, "agrees": agrees}

    def content(self) -> Record:
        """The contents of the JSON file."""
        found: Record = {"suite": "device", "version": 1, "hardware": self.hardware}
        found |= {"options": self.options(), "elapsed": self.elapsed(), "records": self.records}
        return found | {"errors": self.errors, "skipped": self.skipped}

    def save(self) -> None:
        """Replaces the file atomically, so that it is readable after an interruption."""
        if self.out is None:
            return
        partial = self.out.with_name(self.out.name + ".part")
        partial.write_text(json.dumps(self.content(), indent=1) + "\n")
        os.replace(partial, self.out)
