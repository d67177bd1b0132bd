"""Seconds of several programs, side by side in one run, and the programs that stand beside each
other here.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.tree_util import Partial

from dynexit.core.checks import one_depth
from dynexit.core.types import Array, Method, Model, PyTree
from dynexit.engine.run import run_full, run_until
from dynexit.engine.streaming.stream import run_stream

TILES = (8, 16, 32)


class Timing(NamedTuple):
    """Seconds of one program over interleaved repeats: the median, the quickest and the slowest."""

    median: float
    low: float
    high: float


def measure(programs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Times programs in turns, so that a drift of the machine hits all alike; each is run once
    before, to compile.

    Args:
      programs: name -> a call without arguments, whose result is waited for.
      repeats: how often each is timed.

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
    model: Model, method: Method, params: PyTree, inputs: PyTree, tile: int | None = None
) -> Array:
    """Classes `[B, ...]` at full depth: embedding, all blocks by `lax.scan`, the last exit head and
    no other.

    With `tile` so many rows at a time: often quicker than the batch at once (caches), so it belongs
    in the ideal.
    """
    run = lambda x: run_full(model.steps(params), model.embed(params, x), model.depth)[1]
    return _in_tiles(lambda x: method.predict(run(x)), inputs, tile)


class Ran(NamedTuple):
    """What the dynamic program gives per batch; all int32: classes `[B, ...]`, depths and NaN exits
    `[B]`, rows executed `[]`.
    """

    classes: Array
    exit_depth: Array
    nan_exits: Array
    rows_executed: Array


def dynamic_depth(
    model: Model,
    method: Method,
    params: PyTree,
    operating_point: PyTree,
    inputs: PyTree,
    executor: Any = "auto",
    tile: Any = None,
) -> Ran:
    """Each row only as deep as the method's criterion at `point` asks; `executor` and `tile` as in
    `run_until`.
    """
    state, criterion = model.embed(params, inputs), method.criterion(operating_point)
    halted = run_until(
        model.steps(params), state, model.depth, criterion, executor, tile, keep_state=False
    )
    return Ran(
        method.predict(halted.output), halted.exit_depth, halted.nan_exits, halted.rows_executed
    )


def streamed_depth(
    model: Model, method: Method, params: PyTree, operating_point: PyTree, inputs: PyTree
) -> Ran:
    """`dynamic_depth` with all rows as one queue, through `run_stream`; the weights are tied."""
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
    inputs: PyTree,
    exit: Array,
    tile: int | None = None,
) -> Array:
    """Classes `[B, ...]` if all rows leave at `exit`, int32 `[]`: every exit until there is read
    and the rule asked, in vain.
    """
    rule = method.criterion(operating_point)
    together = dataclasses.replace(rule, decide=Partial(_decided_in_vain, rule.decide, exit))
    run = lambda x: run_until(
        model.steps(params),
        model.embed(params, x),
        model.depth,
        together,
        "masked",
        keep_state=False,
    )
    return _in_tiles(lambda x: method.predict(run(x).output), inputs, tile)


def _decided_in_vain(
    decide: Callable, exit: Array, i: Array, score: PyTree, memory: PyTree
) -> tuple[Array, PyTree]:
    exits, memory = decide(i, score, memory)
    return (i >= exit) | (exits & (i < 0)), memory  # never below 0, which no compiler knows


def _in_tiles(run: Callable[[PyTree], Array], inputs: PyTree, tile: int | None) -> Array:
    if tile is None:
        return run(inputs)
    classes = lax.map(run, jax.tree.map(lambda a: a.reshape(-1, tile, *a.shape[1:]), inputs))
    return classes.reshape(-1, *classes.shape[2:])


def in_batches(inputs: PyTree, batch_size: int) -> list[PyTree]:
    """A split `[M, ...]` on the device as batches `[B, ...]`; the last is filled up with the first
    rows.
    """
    rows = len(jax.tree.leaves(inputs)[0])
    index = np.arange(-(-rows // batch_size) * batch_size) % rows
    return [
        jax.tree.map(
            lambda a, start=start: jax.device_put(np.asarray(a)[index[start : start + batch_size]]),
            inputs,
        )
        for start in range(0, len(index), batch_size)
    ]
