"""Full depth and programs with exits, at one batch size and several mean depths."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.bench.device import candidates, vit
from dynexit.bench.device.state import Record, State
from dynexit.bench.device.timing import Timing, compiled, measure, prescribed, seconds_of
from dynexit.bench.device.vit import Problem
from dynexit.core.shapes import Array, Float, Int, PyTree
from dynexit.engine.executors.tiling import Tiling
from dynexit.engine.run import run_all, run_full
from dynexit.engine.tuning.tune import tune

SECTION = "blocks"
CALLS = 4  # least calls of each program: one is checked and three are timed
TUNING = 8  # duration of the measurement of tile costs, in calls at full depth
# (params, state, depths) -> outputs, exit depths, rows executed
Run: TypeAlias = Callable[..., Any]


def run_blocks(suite: State, batch: int) -> None:
    """Measures one batch size and adds a record for each program and mean depth.

    Args:
      suite: the state of the suite.
      batch: rows.
    """
    made = vit.problem(suite.shape, batch)
    _, params, state = made
    depth = suite.shape.depth
    step = vit.stacked(suite.shape, params)
    reference = reference_outputs(made)
    suite.log(f"batch {batch}: compiling the full depth")
    full = {"full": full_program(made)}
    once = seconds_of(lambda: full["full"](params, state))
    if not suite.has_time(SECTION, f"batch {batch}", (TUNING + CALLS) * once):
        return
    suite.log(f"batch {batch}: measuring the cost of tiles")
    sizes = tuple(sorted(candidates.falling(batch, suite.tile_sizes)))
    costs = tune(step, state, depth, sizes=sizes, repeats=3).costs
    suite.add({"section": "tiles", "program": "tile costs", "batch": batch, "costs": costs[0]})
    programs = _fixed_programs(suite, made, costs[0])
    full |= _other_full_programs(suite, made)
    for mean in suite.means:
        depths = prescribed(depth, mean, batch)
        tuned = tune(step, state, depth, depths - 1, costs=costs)
        executor, tile = tuned.executor, tuned.tile
        chosen = f"{executor} {'/'.join(map(str, tile[0].sizes))}"
        key = f"tuned {chosen} {tile[0].costs}"
        if key not in programs:
            until = run_until_program(made, executor, tile)
            run = _compile(suite, made, f"tuned, {chosen}", until)
            programs |= {} if run is None else {key: run}
        here = {n: p for n, p in programs.items() if not n.startswith("tuned") or n == key}
        here = {"tuned" if n == key else n: p for n, p in here.items()}
        notes = {"tuned": {"chosen": chosen}}
        compare(suite, SECTION, f"batch {batch}", made, full, here, depths, reference, notes)


def compare(
    suite: State,
    section: str,
    label: str,
    made: Problem,
    full: Mapping[str, Run],
    programs: Mapping[str, Run],
    depths: Int[np.ndarray, "B"],
    reference: Float[np.ndarray, "E B C"],
    notes: Mapping[str, Record] | None = None,
) -> None:
    """Checks programs against the outputs of every exit, times them interleaved and adds records.

    Args:
      suite: the state of the suite.
      section: name of the section.
      label: name of this measurement in progress lines.
      made: network and batch.
      full: programs that run all blocks, `(params, state)`; "full" gives the ideal seconds.
      programs: programs with exits, `(params, state, depths)`.
      depths: int32 `[B]`, depth at which each row exits.
      reference: `[E, B, C]`, from `dx.run_all`.
      notes: additional entries of records, by program.
    """
    _, params, state = made
    fraction = float(depths.mean()) / made.shape.depth
    placed = jnp.asarray(depths)
    suite.log(f"{label}, mean depth {fraction:.0%}: timing {len(full) + len(programs)} programs")
    common = {"section": section, "batch": made.batch, "mean_depth": fraction}
    common |= {"dtype": made.shape.dtype}
    calls: dict[str, Callable[[], Any]] = {n: lambda f=f: f(params, state) for n, f in full.items()}
    calls |= {name: lambda f=f: f(params, state, placed) for name, f in programs.items()}
    once = seconds_of(calls["full"])
    if not suite.has_time(section, f"{label}, {fraction:.0%}", once * len(calls) * CALLS):
        return
    expected = vit.at_exits(reference, depths)
    checked: dict[str, Record] = {}
    for name, call in calls.items():
        what = f"{label}, {fraction:.0%}, {name}"
        try:
            found = jax.block_until_ready(call())
        except Exception as error:
            suite.fail(section, what, error)
            continue
        if name in full:
            checked[name] = suite.agreement(section, what, found, reference[-1], made.shape.dtype)
            continue
        output, exits, executed = found
        checked[name] = suite.agreement(section, what, output, expected, made.shape.dtype)
        if not np.array_equal(np.asarray(exits), depths):
            suite.fail(section, what, AssertionError("exit depths differ from the prescribed ones"))
            checked[name]["agrees"] = False
        checked[name]["occupancy"] = float(depths.sum()) / int(executed)
    timing = measure({name: calls[name] for name in checked}, suite.rounds, suite.limit)
    for name, t in timing.items():
        record = common | {"program": name} | t.record() | checked[name]
        record |= _ratios(timing["full"], t, 1.0 if name in full else fraction)
        suite.add(record | (notes or {}).get(name, {}))


def _ratios(full: Timing, t: Timing, fraction: float) -> dict[str, float]:
    ideal = full.median * fraction
    return {"speedup": full.median / t.median, "ideal": ideal, "efficiency": ideal / t.median}


def reference_outputs(made: Problem) -> Float[np.ndarray, "E B C"]:
    """The outputs of every exit, by `dx.run_all`: float32 `[E, B, C]`."""
    run = lambda p, h: run_all(vit.stacked(made.shape, p), h, made.shape.depth)
    return np.asarray(jax.jit(run)(made.params, made.state), np.float32)


def full_program(made: Problem, attention: Any = None) -> Run:
    """`dx.run_full`, compiled: `(params, state) -> outputs`."""
    step = lambda p: vit.stacked(made.shape, p, attention=attention)
    run = lambda p, h: run_full(step(p), h, made.shape.depth)[1]
    return compiled(run, made.params, made.state).call


def run_until_program(made: Problem, executor: str, tile: Any) -> Run:
    """`dx.run_until` with an executor and tiles, not compiled."""

    def run(p: PyTree, h: Array, depths: Array) -> tuple[Array, Array, Array]:
        step = vit.stacked(made.shape, p)
        return vit.run_with(step, h, depths, made.shape.depth, executor, tile)

    return run


def _compile(suite: State, made: Problem, name: str, run: Run) -> Run | None:
    depths = jnp.ones(made.batch, jnp.int32)
    label = f"batch {made.batch}, {name}"
    build = lambda: compiled(run, made.params, made.state, depths).call
    return suite.attempt(SECTION, label, build)


def _fixed_programs(suite: State, made: Problem, costs: dict[int, float]) -> dict[str, Run]:
    """The programs that do not depend on the depths."""
    batch, depth = made.batch, made.shape.depth
    make = lambda p: vit.stacked(made.shape, p)
    sizes = candidates.falling(batch, suite.tile_sizes)
    coarse = sizes[:3]
    tiling = Tiling(coarse, tuple(costs[s] for s in coarse))
    runs: dict[str, Run] = {
        "masked": run_until_program(made, "masked", None),
        "compacted": run_until_program(made, "compacted", None),
        f"compacted {'/'.join(map(str, coarse))}": run_until_program(made, "compacted", tiling),
        "shrinking loops": lambda p, h, d: candidates.shrinking(make(p), h, d, depth, sizes),
    }
    built = {name: _compile(suite, made, name, run) for name, run in runs.items()}
    found = {name: run for name, run in built.items() if run is not None}
    if suite.has_time(SECTION, f"batch {batch}, host loop"):
        found["host loop"] = candidates.HostLoop(make, depth, sizes)
    return found


def _other_full_programs(suite: State, made: Problem) -> dict[str, Run]:
    """Full depth as straight-line code, and on a GPU with the attention of cuDNN."""
    shape = made.shape
    found: dict[str, Run] = {}

    def unrolled(p: PyTree, h: Array) -> PyTree:
        step = vit.stacked(shape, p)
        output = None
        for i in range(shape.depth):  # the compiler removes unused outputs
            h, output = step.apply(jax.tree.map(lambda a, i=i: a[i], p), jnp.int32(i), h)
        return output

    build = lambda: compiled(unrolled, made.params, made.state).call
    if run := suite.attempt(SECTION, f"batch {made.batch}, full unrolled", build):
        found["full unrolled"] = run
    if jax.default_backend() == "gpu":
        try:
            found["full cudnn attention"] = full_program(made, "cudnn")
        except Exception as error:  # depends on version and shape; not part of the library
            suite.skip(SECTION, f"batch {made.batch}, full cudnn attention", str(error)[:300])
    return found
