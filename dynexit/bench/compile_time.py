"""Seconds to compile the masked and the compacted program of one network, side by side.

    python -m dynexit.bench.compile_time

Both are lowered and compiled anew in turns, in one process and without the compilation cache. The
medians and their ratio are printed, with the lines of StableHLO.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynexit.bench.problems import Cell, Problem, problem
from dynexit.core.shapes import Array, PyTree
from dynexit.core.types import Criterion, Halted, Step
from dynexit.criteria.confidence import max_probability_above
from dynexit.engine.run import Executor, run_until
from dynexit.engine.steps import stacked_step

DEPTH, CLASSES = 12, 10
EXECUTORS: tuple[Executor, ...] = ("masked", "compacted")


class Compiled(NamedTuple):
    """Compilations of one program.

    Attributes:
      lowering, compiling: median seconds to trace and lower it, and to compile that.
      lines: of StableHLO.
    """

    lowering: float
    compiling: float
    lines: int


def mlp(width: int = 64, batch: int = 128) -> Problem:
    """A residual MLP of 12 blocks with a head after each."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "w": 0.1 * jax.random.normal(keys[0], (DEPTH, width, width)),
        "head": jax.random.normal(keys[1], (DEPTH, width, CLASSES)),
    }
    return Problem(_mlp, params, jax.random.normal(keys[2], (batch, width)))


def _mlp(params: PyTree) -> Step:
    return stacked_step(lambda p, h: h + jnp.tanh(h @ p["w"]), lambda p, h: h @ p["head"], params)


def transformer(width: int = 192, batch: int = 128) -> Problem:
    """The transformer of `dynexit bench`: 12 blocks on 64 tokens."""
    return problem(Cell("transformer", width, 64, DEPTH, batch, "float32"))


def lowered(made: Problem, executor: Executor) -> Any:
    """The program of `run_until`, traced and lowered anew."""

    def run(params: PyTree, state: Array, criterion: Criterion) -> Halted:
        return run_until(made.step(params), state, DEPTH, criterion, executor)

    return jax.jit(run).lower(made.params, made.state, max_probability_above(0.9))


def measure(made: Problem, repeats: int = 5) -> dict[str, Compiled]:
    """Compiles the program of each executor `repeats` times, in turns.

    Args:
      made: the network and its rows.
      repeats: compilations of each program.

    Returns:
      executor -> `Compiled`.
    """
    seconds: dict[str, list[tuple[float, float]]] = {executor: [] for executor in EXECUTORS}
    lines: dict[str, int] = {}
    cached = getattr(jax.config, "jax_enable_compilation_cache")  # noqa: B009
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        for _ in range(repeats):
            for executor in EXECUTORS:
                jax.clear_caches()
                start = time.perf_counter()
                program = lowered(made, executor)
                between = time.perf_counter()
                program.compile()
                seconds[executor].append((between - start, time.perf_counter() - between))
                lines[executor] = len(program.as_text().splitlines())
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
    median = lambda executor, k: statistics.median(pair[k] for pair in seconds[executor])
    return {e: Compiled(median(e, 0), median(e, 1), lines[e]) for e in EXECUTORS}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one line for each network and executor, and the ratios."""
    parser = argparse.ArgumentParser(prog="python -m dynexit.bench.compile_time")
    parser.add_argument("--repeats", type=int, default=5, help="compilations of each program")
    parser.add_argument("--batch", type=int, default=128, help="rows")
    options = parser.parse_args(argv)
    networks = {
        "MLP, width 64": mlp(batch=options.batch),
        "transformer, width 192": transformer(batch=options.batch),
    }
    for name, made in networks.items():
        found = measure(made, options.repeats)
        for executor, of in found.items():
            print(
                f"{name}, {executor}: compiled in {of.compiling:.3f} s, lowered in "
                f"{of.lowering:.3f} s, {of.lines} lines of StableHLO"
            )
        ratio = found["compacted"].compiling / found["masked"].compiling
        print(f"{name}: compacted / masked {ratio:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
