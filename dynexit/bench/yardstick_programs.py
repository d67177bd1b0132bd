"""The programs that the yardstick times: full depth, every schedule, streaming, and a network
unrolled to one depth.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dynexit import criteria
from dynexit.bench.problems import Cell, Problem
from dynexit.core.types import Array, PyTree, Step
from dynexit.engine.executors.tiling import Tiling
from dynexit.engine.run import run_full, run_until
from dynexit.engine.streaming.stream import run_stream

FULL_TILES = (1, 2, 4, 8, 16, 32, 64)
SLOTS = (16, 32, 64)
ALONE = (4, 8, 16, 32, 64)  # tile sizes that are also tried without others
PER_ROW_BATCH = 32  # beyond, one row at a time is timed on request alone
Choice = tuple[Any, Any]  # schedule and tile, for `run_until`
Make = Callable[[PyTree], Step]


class Compiled(NamedTuple):
    """A compiled program.

    Attributes:
      call: the program.
      seconds: that compiling took.
      temporary: bytes it allocates while it runs.
      text: characters of its StableHLO.
    """

    call: Callable[..., Any]
    seconds: float
    temporary: int
    text: int


def compiled(f: Any, *args: Any) -> Compiled:
    """A jitted function, compiled for these arguments."""
    lowered = f.lower(*args)
    start = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    return Compiled(
        program, seconds, int(memory.temp_size_in_bytes) if memory else 0, len(lowered.as_text())
    )


def full_programs(cell: Cell, make: Make) -> dict[str, Any]:
    """Full depth, all rows at once and in tiles: jitted, `(params, state) -> output`."""
    full = jax.jit(lambda p, h: run_full(make(p), h, cell.depth)[1])
    programs: dict[str, Any] = {"full": full}
    for tile in FULL_TILES:
        if tile < cell.batch and cell.batch % tile == 0:
            programs[f"full tiled {tile}"] = jax.jit(
                lambda p, h, t=tile: lax.map(
                    lambda x: full(p, x), h.reshape(-1, t, *h.shape[1:])
                ).reshape(cell.batch, -1)
            )
    return programs


def schedules(batch: int, exhaustive: bool) -> dict[str, Choice]:
    """What `run_until` can be told without measuring; with `exhaustive` `per_row` for every batch."""
    found: dict[str, Choice] = {"compacted": ("compacted", None), "masked": ("masked", None)}
    if exhaustive or batch <= PER_ROW_BATCH:
        found["per_row"] = ("per_row", None)
    return found


def trials(batch: int) -> dict[str, Choice]:
    """The compacted schedule with every largest tile up to the batch, and with tiles of one size."""
    found: dict[str, Choice] = {
        f"tile {2**k}": ("compacted", 2**k) for k in range(batch.bit_length())
    }
    return found | {
        f"tile {s} alone": ("compacted", Tiling((s,), (1.0,))) for s in ALONE if s <= batch
    }


def dynamic_program(cell: Cell, make: Make, choice: Choice) -> Any:
    """Rows that leave at depths int32 `[B]`: jitted, `(params, state, depths) -> (output, rows
    executed)`.
    """

    def run(p: PyTree, h: Array, depths: Array) -> tuple[PyTree, Array]:
        halted = run_until(
            make(p), h, cell.depth, criteria.at_depth(depths), *choice, keep_state=False
        )
        return halted.output, halted.rows_executed

    return jax.jit(run)


def stream_programs(cell: Cell, make: Make) -> dict[str, Any]:
    """The batch as a queue for fewer slots, where weights are tied; as `dynamic_program`."""

    def program(slots: int) -> Any:
        def run(p: PyTree, h: Array, depths: Array) -> tuple[PyTree, Array]:
            halted = run_stream(make(p), h, cell.depth, criteria.at_depth(depths), slots)
            return halted.output, halted.rows_executed

        return jax.jit(run)

    return {
        f"stream {slots}": program(slots)
        for slots in SLOTS
        if cell.block == "tied" and slots < cell.batch
    }


def unrolled(problem: Problem, depth: int) -> tuple[Compiled, tuple]:
    """The first blocks one after the other and the last one's exit alone, with the depth known
    before; and its arguments.

    Every block's weights are arrays of their own, so that none are copied.
    """
    step = problem.step(problem.params)
    weights = [jax.tree.map(jnp.asarray, step.select(jnp.int32(i))) for i in range(depth)]

    def run(weights: list, h: PyTree) -> PyTree:
        output = None
        for i, w in enumerate(weights):
            h, output = step.apply(w, jnp.int32(i), h)  # XLA removes the outputs that no one reads
        return output

    return compiled(jax.jit(run), weights, problem.state), (weights, problem.state)
