"""Seconds of several programs, timed side by side in one run."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.tree_util import Partial

from dynexit.core.shapes import Array, Int, PyTree, Rows, Shaped
from dynexit.core.stages import one_depth
from dynexit.core.types import Method, Model
from dynexit.engine.executors.tiling import Tiling
from dynexit.engine.run import run_full, run_until
from dynexit.engine.streaming.stream import run_stream

TILES = (8, 16, 32)


class Timing(NamedTuple):
    """Seconds of one program over interleaved repeats: the median, the lowest and the highest."""

    median: float
    low: float
    high: float


def measure(programs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Times programs in turns, so that a drift of the machine affects all alike.

    Each program runs once before, to compile.

    Args:
      programs: name -> a call without arguments, whose result is waited for.
      repeats: number of timings of each.

    Raises:
      ValueError: `repeats` is below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> f = jax.jit(jnp.sin)
      >>> list(measure({"sin": lambda: f(1.0)}, repeats=3))
      ['sin']
    """
    if repeats < 1:
        raise ValueError(f"`repeats` must be at least 1, got {repeats}")
    for program in programs.values():
        jax.block_until_ready(program())
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(float(np.median(s)), min(s), max(s)) for name, s in seconds.items()}


def full_depth(
    model: Model, method: Method, params: PyTree, inputs: Rows, tile: int | None = None
) -> Shaped[Array, "B ..."]:
    """Classes `[B, ...]` at full depth: embedding, all blocks by `lax.scan`, the last head alone.

    With `tile` the batch is split into tiles of so many rows. Tiles are often faster than the whole
    batch (caches), so the ideal time includes them.
    """
    run = lambda x: run_full(model.steps(params), model.embed(params, x), model.depth)[1]
    return _in_tiles(lambda x: method.predict(run(x)), inputs, tile)


class Ran(NamedTuple):
    """The result of the dynamic program for a batch, int32.

    Attributes:
      classes: `[B, ...]`.
      exit_depth: `[B]`.
      nan_exits: exits that held a NaN, `[B]`.
      rows_executed: `[]`; `[D]` on D devices.
    """

    classes: Shaped[Array, "B ..."]
    exit_depth: Int[Array, "B"]
    nan_exits: Int[Array, "B"]
    rows_executed: Int[Array, "..."]


def dynamic_depth(
    model: Model,
    method: Method,
    params: PyTree,
    operating_point: PyTree,
    inputs: Rows,
    executor: Any = "auto",
    tile: int | Tiling | Sequence[Tiling] | None = None,
) -> Ran:
    """Runs each row until the method's criterion at `operating_point` lets it exit.

    `executor` and `tile` are those of `run_until`.
    """
    state, criterion = model.embed(params, inputs), method.criterion(operating_point)
    halted = run_until(
        model.steps(params), state, model.depth, criterion, executor, tile, keep_state=False
    )
    return Ran(
        method.predict(halted.output), halted.exit_depth, halted.nan_exits, halted.rows_executed
    )


def streamed_depth(
    model: Model, method: Method, params: PyTree, operating_point: PyTree, inputs: Rows
) -> Ran:
    """`dynamic_depth` through `run_stream`, with all rows in one queue; the weights are tied."""
    state, criterion = model.embed(params, inputs), method.criterion(operating_point)
    halted = run_stream(model.steps(params), state, one_depth(model), criterion, keep_state=False)
    return Ran(
        method.predict(halted.output), halted.exit_depth, halted.nan_exits, halted.rows_executed
    )


def depth_together(
    model: Model,
    method: Method,
    params: PyTree,
    operating_point: PyTree,
    inputs: Rows,
    exit: Int[Array, ""],
    tile: int | None = None,
) -> Shaped[Array, "B ..."]:
    """Classes `[B, ...]` if all rows exit at `exit`, int32 `[]`.

    Every exit up to there is read and the criterion is evaluated, but its decision has no effect.
    """
    rule = method.criterion(operating_point)
    together = dataclasses.replace(rule, decide=Partial(_decide_at, rule.decide, exit))
    run = lambda x: run_until(
        model.steps(params),
        model.embed(params, x),
        model.depth,
        together,
        "masked",
        keep_state=False,
    )
    return _in_tiles(lambda x: method.predict(run(x).output), inputs, tile)


def _decide_at(
    decide: Callable[..., tuple[Array, PyTree]],
    exit: Array,
    i: Array,
    score: PyTree,
    memory: PyTree,
) -> tuple[Array, PyTree]:
    exits, memory = decide(i, score, memory)
    return (i >= exit) | (exits & (i < 0)), memory  # i is never below 0; the compiler cannot know


def _in_tiles(run: Callable[[PyTree], Array], inputs: PyTree, tile: int | None) -> Array:
    if tile is None:
        return run(inputs)
    classes = lax.map(run, jax.tree.map(lambda a: a.reshape(-1, tile, *a.shape[1:]), inputs))
    return classes.reshape(-1, *classes.shape[2:])


def in_batches(inputs: PyTree, batch_size: int) -> list[Rows]:
    """A split `[M, ...]` on the device as batches `[B, ...]`, padded with the first rows."""
    rows = len(jax.tree.leaves(inputs)[0])
    index = np.arange(-(-rows // batch_size) * batch_size) % rows
    return [
        jax.tree.map(
            lambda a, start=start: jax.device_put(np.asarray(a)[index[start : start + batch_size]]),
            inputs,
        )
        for start in range(0, len(index), batch_size)
    ]
