"""Streaming a queue of rows through one tied block, and full depth on the whole queue."""

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.bench.device import vit
from dynexit.bench.device.blocks import Run, compare
from dynexit.bench.device.state import State
from dynexit.bench.device.timing import compiled, prescribed
from dynexit.core.shapes import Array, PyTree
from dynexit.criteria.confidence import at_depth
from dynexit.engine.run import run_all, run_full
from dynexit.engine.streaming.stream import run_stream

SECTION = "streaming"


def run_streaming(suite: State) -> None:
    """Adds records of `dx.run_full`, `dx.run_stream` and the executors at every mean depth."""
    made = vit.problem(suite.shape, suite.queue)
    shape, params, state = made
    depth = shape.depth
    make = lambda p: vit.tied(shape, p)
    ones = jnp.ones(suite.queue, jnp.int32)
    suite.log(f"streaming: compiling the full depth of {suite.queue} rows")
    full = compiled(lambda p, h: run_full(make(p), h, depth)[1], params, state).call
    outputs = jax.jit(lambda p, h: run_all(make(p), h, depth))(params, state)
    reference = np.asarray(outputs, np.float32)

    def stream(slots: int) -> Run:
        def run(p: PyTree, h: Array, depths: Array) -> tuple[Array, Array, Array]:
            rule = at_depth(depths)
            halted = run_stream(make(p), h, depth, rule, slots, keep_state=False)
            return halted.output, halted.exit_depth, halted.rows_executed

        return run

    def executed(executor: str) -> Run:
        return lambda p, h, d: vit.run_with(make(p), h, d, depth, executor)

    runs = {f"stream, {slots} slots": stream(slots) for slots in suite.slots}
    runs |= {"masked": executed("masked"), "compacted": executed("compacted")}
    programs: dict[str, Run] = {}
    for name, run in runs.items():
        build = lambda run=run: compiled(run, params, state, ones).call
        if (program := suite.attempt(SECTION, name, build)) is not None:
            programs[name] = program
    for mean in suite.means:
        depths = prescribed(depth, mean, suite.queue)
        compare(suite, SECTION, "streaming", made, {"full": full}, programs, depths, reference)
