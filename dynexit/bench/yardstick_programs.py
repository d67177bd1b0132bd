"""The programs of the benchmark: full depth, the executors, streaming, and unrolled blocks."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from dynexit import criteria
from dynexit.bench.problems import Cell, Problem
from dynexit.core.shapes import Array, PyTree
from dynexit.core.types import Step
from dynexit.engine.executors.tiling import Tiling
from dynexit.engine.run import run_full, run_until
from dynexit.engine.streaming.stream import run_stream

FULL_TILES = (1, 2, 4, 8, 16, 32, 64)
SLOTS = (16, 32, 64)
SINGLE_SIZES = (4, 8, 16, 32, 64)  # tile sizes that are also timed without smaller tiles
PER_ROW_BATCH = 32  # for larger batches per_row is timed only with `exhaustive`
Choice: TypeAlias = tuple[Any, Any]  # executor and tile, for `run_until`
Make: TypeAlias = Callable[[PyTree], Step]


class Compiled(NamedTuple):
    """A compiled program.

    Attributes:
      call: the program.
      seconds: compile time.
      temporary: bytes of temporary memory, 0 if unknown.
      text: length of its StableHLO text, in characters.
    """

    call: Callable[..., Any]
    seconds: float
    temporary: int
    text: int


def compiled(f: Any, *args: Any) -> Compiled:
    """Compiles a jitted function for these arguments.

    Args:
      f: a function from `jax.jit`.
      *args: its arguments.

    Returns:
      A `Compiled`.
    """
    lowered = f.lower(*args)
    start = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - start
    memory = program.memory_analysis()
    temporary = int(memory.temp_size_in_bytes) if memory else 0
    return Compiled(program, seconds, temporary, len(lowered.as_text()))


def full_programs(cell: Cell, make: Make) -> dict[str, Any]:
    """Jitted programs of full depth, with all rows at once and in tiles, by name.

    Args:
      cell: the network and batch.
      make: `make(params) -> Step`.

    Returns:
      Functions `(params, state) -> output`.
    """
    full = jax.jit(lambda p, h: run_full(make(p), h, cell.depth)[1])
    programs: dict[str, Any] = {"full": full}
    for tile in FULL_TILES:
        if tile < cell.batch and cell.batch % tile == 0:
            programs[f"full tiled {tile}"] = jax.jit(
                lambda p, h, t=tile: jax.tree.map(
                    lambda a: a.reshape(cell.batch, *a.shape[2:]),
                    lax.map(lambda x: full(p, x), jax.tree.map(lambda a: _cut(a, t), h)),
                )
            )
    return programs


def _cut(a: Array, tile: int) -> Array:
    return a.reshape(-1, tile, *a.shape[1:])


def executors(batch: int, exhaustive: bool) -> dict[str, Choice]:
    """The executors of `run_until` with default tiles, by name.

    Args:
      batch: B.
      exhaustive: whether to include "per_row" for batches above 32.

    Returns:
      Executor and tile of each.
    """
    found: dict[str, Choice] = {"compacted": ("compacted", None), "masked": ("masked", None)}
    if exhaustive or batch <= PER_ROW_BATCH:
        found["per_row"] = ("per_row", None)
    return found


def trials(batch: int) -> dict[str, Choice]:
    """The compacted executor with every largest tile up to B, and with tiles of a single size.

    Args:
      batch: B.

    Returns:
      Executor and tile of each, by name.
    """
    largest: dict[str, Choice] = {
        f"tile {2**k}": ("compacted", 2**k) for k in range(batch.bit_length())
    }
    single = {
        f"single tile {s}": ("compacted", Tiling((s,), (1.0,))) for s in SINGLE_SIZES if s <= batch
    }
    return largest | single


def dynamic_program(cell: Cell, make: Make, choice: Choice) -> Any:
    """A jitted program of `run_until` whose rows exit at given depths.

    Args:
      cell: the network and batch.
      make: `make(params) -> Step`.
      choice: executor and tile.

    Returns:
      A function `(params, state, depths) -> (output, rows_executed)`, with depths int32 `[B]`.
    """

    def run(p: PyTree, h: Array, depths: Array) -> tuple[PyTree, Array]:
        halted = run_until(
            make(p), h, cell.depth, criteria.at_depth(depths), *choice, keep_state=False
        )
        return halted.output, halted.rows_executed

    return jax.jit(run)


def stream_programs(cell: Cell, make: Make) -> dict[str, Any]:
    """Programs of `run_stream`, with the batch as the queue of fewer slots, for tied weights.

    Args:
      cell: the network and batch.
      make: `make(params) -> Step`.

    Returns:
      Functions as that of `dynamic_program`, by name; none if weights are not tied.
    """

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


def unrolled(problem: Problem, depth: int) -> tuple[Compiled, tuple[PyTree, PyTree]]:
    """A program of `depth` unrolled blocks and the last exit.

    The weights of each block are separate arrays, so that no weights are copied.

    Args:
      problem: the network and batch.
      depth: number of blocks.

    Returns:
      The program and its arguments.
    """
    step = problem.step(problem.params)
    weights = [jax.tree.map(jnp.asarray, step.select(jnp.int32(i))) for i in range(depth)]

    def run(weights: list[PyTree], h: PyTree) -> PyTree:
        output = None
        for i, w in enumerate(weights):
            h, output = step.apply(w, jnp.int32(i), h)  # XLA removes unused outputs
        return output

    return compiled(jax.jit(run), weights, problem.state), (weights, problem.state)
