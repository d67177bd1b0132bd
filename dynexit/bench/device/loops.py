"""Seconds per iteration of loops with a data-dependent end, also with GPU command buffers.

XLA reads its flags when the backend starts, so each set of flags needs its own process. The child
`python -m dynexit.bench.device.loops` compiles the programs, prints one line of JSON, and times
every program once for each line that it reads. The parent alternates between its children.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynexit.bench.device import vit
from dynexit.bench.device.processes import Child
from dynexit.bench.device.state import State
from dynexit.bench.device.timing import compiled, prescribed, timing_of
from dynexit.core.shapes import Array, PyTree

SECTION = "loops"
FLAGS = {  # by the name of the variant; the first that the installed XLA accepts is used
    "default flags": ("",),
    "command buffers for loops": (
        "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL",
        "--xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,WHILE,CONDITIONAL",
    ),
}
BLOCK_BATCH = 8  # rows of the loops over transformer blocks
START_SECONDS = 120.0  # at most, for a child to start and compile
Program: TypeAlias = tuple[Callable[[], Any], int]  # the call, and how many iterations it runs


def run_loops(suite: State) -> None:
    """Adds a record for each loop and set of flags."""
    if jax.default_backend() == "gpu":
        try:
            return _in_children(suite)
        except Exception as error:
            suite.fail(SECTION, "processes with flags", error)
    else:
        reason = f"not applicable: command buffers need a GPU, this is a {jax.default_backend()}"
        suite.skip(SECTION, "command buffers for loops", reason)
    suite.log("loops: compiling")
    programs = loop_programs(suite.small, suite.loop_iterations)
    suite.log("loops: timing")
    rounds = [time_once(programs) for _ in range(suite.rounds)]
    _add(suite, "default flags", "", rounds)


def _in_children(suite: State) -> None:
    children: dict[str, Child] = {}
    used: dict[str, str] = {}
    try:
        for variant, alternatives in FLAGS.items():
            for flags in alternatives:
                suite.log(f"loops: starting a process with {flags or variant}")
                arguments = ["--iterations", str(suite.loop_iterations)]
                arguments += ["--small"] if suite.small else []
                child = Child("dynexit.bench.device.loops", arguments, flags)
                try:
                    child.read(min(START_SECONDS, max(suite.remaining(), 1.0)))
                except RuntimeError as error:
                    child.close()
                    suite.skip(SECTION, flags or variant, f"the process failed: {error}")
                    continue
                children[variant], used[variant] = child, flags
                break
        if not children:
            raise RuntimeError("no process could measure the loops")
        suite.log("loops: timing")
        rounds: dict[str, list[dict[str, float]]] = {variant: [] for variant in children}
        for _ in range(suite.rounds):
            for variant, child in children.items():
                rounds[variant].append(child.request("time", START_SECONDS))
        for variant, found in rounds.items():
            _add(suite, variant, used[variant], found)
    finally:
        for child in children.values():
            child.close()


def _add(suite: State, variant: str, flags: str, rounds: list[dict[str, float]]) -> None:
    for name in rounds[0]:
        timing = timing_of([seconds[name] for seconds in rounds])
        record = {"section": SECTION, "program": name, "variant": variant, "flags": flags}
        suite.add(record | timing.record() | {"microseconds": 1e6 * timing.median})


def loop_programs(small: bool, iterations: int) -> dict[str, Program]:
    """The programs, compiled and called once.

    Args:
      small: whether to use the small network.
      iterations: of the loops over small bodies.

    Returns:
      The call and the number of iterations of each program, by name.
    """
    found = {name: _dynamic(body, iterations) for name, body in _bodies().items()}
    found["fixed trip count, small body"] = _fixed(_bodies()["while, small body"], iterations)
    found |= _block_loops(vit.SMALL if small else vit.VIT_B16)
    for call, _ in found.values():
        jax.block_until_ready(call())
    return found


def time_once(programs: dict[str, Program]) -> dict[str, float]:
    """Seconds per iteration of each program, from one call."""
    seconds: dict[str, float] = {}
    for name, (call, iterations) in programs.items():
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds[name] = (time.perf_counter() - start) / iterations
    return seconds


def _bodies() -> dict[str, Callable[[Any, Any], Any]]:
    """`body(x, none) -> x` on `[256, 256]`; `none` is a traced 0, unknown to the compiler."""

    def small(x: Array, none: Array) -> Array:
        return x * 0.999 + 0.001

    def product(x: Array, none: Array) -> Array:
        return jnp.tanh(x.astype(jnp.bfloat16) @ x.astype(jnp.bfloat16)).astype(x.dtype)

    def conditional(x: Array, none: Array) -> Array:
        return lax.cond(x[0, 0] > 2.0, lambda x: x + 1.0, lambda x: small(x, none), x)

    # like the compacted executor: a loop per tile size, most with no iterations
    def nested(x: Array, none: Array) -> Array:
        for times in (none + 1, none, none):
            x = lax.fori_loop(0, times, lambda _, x: small(x, none), x)
        return x

    names = "while, small body", "while, matrix product", "while with conditional"
    found = dict(zip(names, (small, product, conditional), strict=True))
    return found | {"while with 3 inner loops": nested}


def _start() -> Array:
    return jnp.full((256, 256), 0.5, jnp.float32)


def _dynamic(body: Callable[[Any, Any], Any], iterations: int) -> Program:
    def run(x: Array, count: Array, none: Array) -> Any:
        condition = lambda carry: (carry[0] < count) & (carry[1].max() < 2.0)  # x stays below 2
        step = lambda carry: (carry[0] + 1, body(carry[1], none))
        return lax.while_loop(condition, step, (jnp.int32(0), x))

    arguments = _start(), jnp.int32(iterations), jnp.int32(0)
    program = compiled(run, *arguments).call
    return lambda: program(*arguments), iterations


def _fixed(body: Callable[[Any, Any], Any], iterations: int) -> Program:
    run = lambda x, none: lax.fori_loop(0, iterations, lambda _, x: body(x, none), x)
    arguments = _start(), jnp.int32(0)
    program = compiled(run, *arguments).call
    return lambda: program(*arguments), iterations


def _block_loops(shape: vit.Shape) -> dict[str, Program]:
    """`dx.run_until` over transformer blocks, where an iteration is one block."""
    made = vit.problem(shape, BLOCK_BATCH)
    drawn = prescribed(shape.depth, 0.5, BLOCK_BATCH)
    arguments = made.params, made.state, jnp.asarray(drawn)
    found: dict[str, Program] = {}
    for executor in ("masked", "compacted"):

        def run(p: PyTree, h: Array, depths: Array, executor: str = executor) -> Any:
            step = vit.stacked(shape, p)
            return vit.run_with(step, h, depths, shape.depth, executor)

        program = compiled(run, *arguments).call
        name = f"{executor}, {BLOCK_BATCH} rows"
        found[name] = (lambda f=program: f(*arguments)), int(np.max(drawn))
    return found


def main() -> None:
    """Entry point of the child process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--iterations", type=int, required=True)
    options = parser.parse_args()
    programs = loop_programs(options.small, options.iterations)
    print(json.dumps({"ready": sorted(programs)}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(time_once(programs)), flush=True)


if __name__ == "__main__":
    main()
