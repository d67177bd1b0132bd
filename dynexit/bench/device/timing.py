"""Interleaved timings, ahead-of-time compilation and prescribed depths for the device suite."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from dynexit.core.shapes import Int, PyTree

LEAST_ROUNDS = 3  # rounds that are timed even if they exceed the limit


class Timing(NamedTuple):
    """Seconds of one program.

    Attributes:
      median: the median of all rounds.
      low: the fastest round.
      high: the slowest round.
    """

    median: float
    low: float
    high: float

    def record(self, per: float = 1.0) -> dict[str, float]:
        """The timing as entries of a JSON record.

        Args:
          per: the seconds are divided by this number.
        """
        return {"seconds": self.median / per, "low": self.low / per, "high": self.high / per}


class Compiled(NamedTuple):
    """A compiled program.

    Attributes:
      call: the program.
      seconds: time of tracing and compilation.
      memory: bytes by kind, as the compiler reports them; empty where it reports none.
    """

    call: Callable[..., Any]
    seconds: float
    memory: dict[str, int]


def timing_of(seconds: list[float]) -> Timing:
    """The median, minimum and maximum of some timings in seconds."""
    return Timing(float(np.median(seconds)), min(seconds), max(seconds))


def measure(
    calls: Mapping[str, Callable[[], Any]], rounds: int, limit: float = 10.0
) -> dict[str, Timing]:
    """Times programs interleaved, A B C A B C ...

    Args:
      calls: the programs, already compiled; each returns arrays.
      rounds: timed calls of each program.
      limit: seconds after which no further round starts, but at least 3 rounds are timed.

    Returns:
      A `Timing` for each program.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for k in range(rounds):
        if k >= LEAST_ROUNDS and time.perf_counter() - began > limit:
            break
        for name, call in calls.items():
            seconds[name].append(_timed(call))
    return {name: timing_of(s) for name, s in seconds.items()}


def seconds_of(call: Callable[[], Any]) -> float:
    """Seconds of one call, after a call that is not timed."""
    jax.block_until_ready(call())
    return _timed(call)


def compiled(f: Callable[..., Any], *arguments: PyTree) -> Compiled:
    """Compiles a function for given arguments.

    Args:
      f: a function, to be jitted.
      *arguments: arrays, or trees of arrays.

    Returns:
      A `Compiled`, to be called with arguments of the same shapes.
    """
    start = time.perf_counter()
    program = jax.jit(f).lower(*arguments).compile()
    return Compiled(program, time.perf_counter() - start, _memory(program))


def prescribed(depth: int, mean: float, batch: int) -> Int[np.ndarray, "B"]:
    """Depths of a batch from a truncated geometric distribution, in a fixed random order.

    P(k) is proportional to q^k for k = 1..depth, with q chosen for the mean. The rows take the
    quantiles of the distribution, so that every run of the suite has the same depths.

    Args:
      depth: blocks of the network.
      mean: mean depth as a fraction of `depth`.
      batch: number of rows.

    Returns:
      int32 `[batch]`, within 1..depth.
    """
    blocks = np.arange(1, depth + 1)
    low, high, weight = -5.0, 5.0, np.ones(depth)
    for _ in range(60):  # bisection on ln q
        middle = (low + high) / 2
        weight = np.exp(middle * (blocks - (depth if middle > 0 else 1)))
        too_low = weight @ blocks / weight.sum() < mean * depth
        low, high = (middle, high) if too_low else (low, middle)
    total = np.cumsum(weight) / weight.sum()
    quantiles = (np.arange(batch) + 0.5) / batch
    depths = 1 + np.searchsorted(total, quantiles)
    return np.random.default_rng(0).permutation(np.minimum(depths, depth)).astype(np.int32)


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def _memory(program: Any) -> dict[str, int]:
    analysis = program.memory_analysis()
    kinds = {"temporary_bytes": "temp_size_in_bytes", "argument_bytes": "argument_size_in_bytes"}
    kinds |= {"output_bytes": "output_size_in_bytes", "peak_bytes": "peak_memory_in_bytes"}
    found = {name: getattr(analysis, of, None) for name, of in kinds.items()}
    return {name: int(size) for name, size in found.items() if size is not None}
