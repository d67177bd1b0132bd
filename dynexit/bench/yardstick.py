"""The benchmark of the executors: random blocks whose rows exit at sampled depths.

    ideal           = seconds of the fastest full-depth program x mean depth / N
    efficiency      = ideal / measured seconds
    occupancy       = rows x blocks needed / rows x blocks executed
    tuned over best = seconds of the choice of `dx.tune` / seconds of the fastest choice for
                      `run_until`

For the last ratio the two programs are timed once more in alternation. The fastest of many noisy
timings is an underestimate.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from dynexit.bench.masked_peer import TooLarge
from dynexit.bench.problems import Cell, Problem, draw, problem
from dynexit.bench.yardstick_programs import (
    Choice,
    Compiled,
    compiled,
    dynamic_program,
    executors,
    full_programs,
    stream_programs,
    trials,
    unrolled,
)
from dynexit.core.shapes import Int
from dynexit.engine.tuning.tune import Tuned, tune
from dynexit.evaluation.latency import Timing, measure

COMPARISON = 3  # times as many repeats if only two programs are compared
Peer: TypeAlias = Callable[[Cell, Problem, Int[np.ndarray, "B"]], Callable[[], Any]]
Record: TypeAlias = dict[str, Any]


def run_cell(
    cell: Cell,
    loads: Sequence[tuple[str, float]],
    repeats: int,
    peers: Mapping[str, Peer],
    log: Callable[[str], None],
    exhaustive: bool = False,
) -> list[Record]:
    """Times all programs of a cell, interleaved, for several distributions of depths.

    Args:
      cell: the network and batch.
      loads: (distribution, mean depth as a fraction of N), from which depths are sampled.
      repeats: timings of each program; the median is reported.
      peers: functions `peer(cell, problem, depths) -> call` by name, reported as "peer NAME". A
        peer that raises `TooLarge` is skipped and logged.
      log: called with a line for every phase.
      exhaustive: whether to time the compacted executor with many tilings too, and to compare the
        tuned choice with the fastest.

    Returns:
      One record per load and program. `kind` is "full", "executor" (of `run_until`), "trial" (a
      tiling of `exhaustive`), "stream", "unrolled" or "peer". `target_mean` is the mean depth of
      the distribution and `mean` that of the sampled depths, as fractions of N. Every record has
      `seconds` (median), `low`, `high` and `speedup`; programs with exits have `efficiency` and,
      if known, `occupancy`; compiled programs have `compile_seconds`, `temporary_bytes` and
      `program_bytes`. The record of "tuned" has `chosen` and, with `exhaustive`,
      `tuned_over_best`, which is at least 1 up to noise.
    """
    made = problem(cell)
    make, params, state = made
    costs = tune(make(params), state, cell.depth).costs  # measured once, used for every load
    fixed = executors(cell.batch, exhaustive)
    tilings = trials(cell.batch) if exhaustive else {}
    kinds = dict.fromkeys(fixed, "executor") | dict.fromkeys(tilings, "trial")
    depths = jnp.full(cell.batch, cell.depth, jnp.int32)
    log(f"{cell}: compiling")
    full = {name: compiled(f, params, state) for name, f in full_programs(cell, make).items()}
    build = lambda choice: compiled(dynamic_program(cell, make, choice), params, state, depths)
    dynamic = {name: build(choice) for name, choice in (fixed | tilings).items()}
    streams = {
        name: compiled(f, params, state, depths) for name, f in stream_programs(cell, make).items()
    }
    built: dict[Choice, Compiled] = {}
    records: list[Record] = []
    for distribution, target in loads:
        drawn = draw(distribution, target, cell.depth, cell.batch)
        depths = jnp.asarray(drawn)
        tuned = tune(make(params), state, cell.depth, exits=drawn - 1, costs=costs)
        log(f"{cell}, {distribution} {target:g}: {tuned}")
        choice = tuned.executor, tuned.tile
        if choice not in built:
            built[choice] = build(choice)
        here = full | dynamic | {"tuned": built[choice]} | streams
        calls: dict[str, Callable[[], Any]] = {
            name: lambda f=here[name].call: f(params, state) for name in full
        }
        calls |= {
            name: lambda f=here[name].call, d=depths: f(params, state, d)
            for name in here
            if name not in full
        }
        kind = (
            dict.fromkeys(full, "full")
            | kinds
            | {"tuned": "executor"}
            | dict.fromkeys(streams, "stream")
        )
        if cell.batch == 1:
            program, arguments = unrolled(made, int(drawn[0]))
            here["unrolled"], kind["unrolled"] = program, "unrolled"
            calls["unrolled"] = lambda f=program.call, a=arguments: f(*a)
        for name, peer in peers.items():
            try:
                calls[f"peer {name}"], kind[f"peer {name}"] = peer(cell, made, drawn), "peer"
            except TooLarge as error:
                log(f"{cell}: peer {name} skipped: {error}")
        found = _records(cell, measure(calls, repeats), kind, here, calls, drawn)
        for record in found:
            record |= {"distribution": distribution, "target_mean": target}
        (record,) = (r for r in found if r["program"] == "tuned")
        record["chosen"] = _chosen(tuned)
        if exhaustive:
            record["tuned_over_best"] = _tuned_over_best(found, calls, repeats)
        records += found
    return records


def _records(
    cell: Cell,
    timing: Mapping[str, Timing],
    kind: Mapping[str, str],
    programs: Mapping[str, Compiled],
    calls: Mapping[str, Callable[[], Any]],
    drawn: np.ndarray,
) -> list[Record]:
    best = min(t.median for name, t in timing.items() if kind[name] == "full")
    share = float(drawn.mean()) / cell.depth
    records: list[Record] = []
    for name, t in timing.items():
        record = cell._asdict() | {"mean": share, "program": name, "kind": kind[name]}
        record |= {"seconds": t.median, "low": t.low, "high": t.high, "speedup": best / t.median}
        if kind[name] != "full":
            record["efficiency"] = best * share / t.median
        if kind[name] in ("executor", "trial", "stream"):
            record["occupancy"] = int(drawn.sum()) / int(calls[name]()[1])
        if name in programs:
            of = programs[name]
            record |= {
                "compile_seconds": of.seconds,
                "temporary_bytes": of.temporary,
                "program_bytes": of.text,
            }
        records.append(record)
    return records


def _chosen(tuned: Tuned) -> str:
    sizes = ", ".join("/".join(map(str, t.sizes)) for t in tuned.tile)
    return f"{tuned.executor} {sizes}" if tuned.executor == "compacted" else tuned.executor


def _tuned_over_best(
    records: Sequence[Record], calls: Mapping[str, Callable[[], Any]], repeats: int
) -> float:
    """Seconds of the tuned program over those of the fastest one, timed again in alternation.

    It is 1 if the tuned program is the fastest.
    """
    candidates = [r for r in records if r["kind"] in ("executor", "trial")]
    best = min(candidates, key=lambda r: r["seconds"])["program"]
    if best == "tuned":
        return 1.0
    timing = measure({name: calls[name] for name in ("tuned", best)}, COMPARISON * repeats)
    return timing["tuned"].median / timing[best].median
