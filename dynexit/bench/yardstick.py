"""The yardstick of the engine: every schedule on random blocks whose rows leave at drawn depths,
beside full depth and peers.

ideal           = seconds of the quickest full-depth program x mean depth / N efficiency      =
ideal / measured seconds occupancy       = rows x blocks that rows needed / rows x blocks that ran
tuned over best = seconds of what `dx.tune` chose / seconds of the quickest of all that `run_until`
was told; the two are timed once more beside each other, for the quickest of many noisy timings
looks quicker than it is
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from dynexit.bench.masked_peer import TooLarge
from dynexit.bench.problems import Cell, Problem, draw, problem
from dynexit.bench.yardstick_programs import (
    Choice,
    Compiled,
    compiled,
    dynamic_program,
    full_programs,
    schedules,
    stream_programs,
    trials,
    unrolled,
)
from dynexit.engine.tuning.tune import Tuned, tune
from dynexit.evaluation.latency import Timing, measure

DUEL = 3  # times as many repeats where only two programs are compared
Peer = Callable[[Cell, Problem, np.ndarray], Callable[[], Any]]


def run_cell(
    cell: Cell,
    loads: Sequence[tuple[str, float]],
    repeats: int,
    peers: Mapping[str, Peer],
    log: Callable[[str], None],
    exhaustive: bool = False,
) -> list[dict]:
    """Times all programs of a cell in turns, for several distributions of depths.

    Args:
      cell: the network and batch.
      loads: (distribution, mean depth as a fraction of N) to draw depths from.
      repeats: timings of each program; the median counts.
      peers: name -> a function that gives a call for this cell and these depths; shown as "peer
        NAME". One that raises `TooLarge` is left out and said.
      log: gets a line for every phase.
      exhaustive: also time the compacted schedule with many tilings, and say how near the tuned
        choice comes to the best.

    Returns:
      One record per load and program. `kind` is "full", "executor" (one of `run_until`), "trial" (a
      tiling of `exhaustive`), "stream", "unrolled" or "peer"; `asked` is the mean depth asked for
      and `mean` that of the depths drawn. Seconds with spread; where depth is dynamic the
      efficiency; `occupancy` where it is known; what compiling gave. The record of "tuned" holds
      what was `chosen` and, with `exhaustive`, `tuned_over_best`, about 1 at best (below it by
      chance alone).
    """
    made = problem(cell)
    make, params, state = made
    costs = tune(
        make(params), state, cell.depth
    ).costs  # measured once, planned with for every load
    told = schedules(cell.batch, exhaustive)
    tried = trials(cell.batch) if exhaustive else {}
    kinds = dict.fromkeys(told, "executor") | dict.fromkeys(tried, "trial")
    depths = jnp.full(cell.batch, cell.depth, jnp.int32)
    log(f"{cell}: compiling")
    full = {name: compiled(f, params, state) for name, f in full_programs(cell, make).items()}
    build = lambda choice: compiled(dynamic_program(cell, make, choice), params, state, depths)
    dynamic = {name: build(choice) for name, choice in (told | tried).items()}
    streams = {
        name: compiled(f, params, state, depths) for name, f in stream_programs(cell, make).items()
    }
    built: dict[Choice, Compiled] = {}
    records = []
    for distribution, asked in loads:
        drawn = draw(distribution, asked, cell.depth, cell.batch)
        depths = jnp.asarray(drawn)
        tuned = tune(make(params), state, cell.depth, exits=drawn - 1, costs=costs)
        log(f"{cell}, {distribution} {asked:g}: {tuned}")
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
                log(f"{cell}: peer {name} left out: {error}")
        found = _records(cell, measure(calls, repeats), kind, here, calls, drawn)
        for record in found:
            record |= {"distribution": distribution, "asked": asked}
        (record,) = (r for r in found if r["program"] == "tuned")
        record["chosen"] = _chosen(tuned)
        if exhaustive:
            record["tuned_over_best"] = _duel(found, calls, repeats)
        records += found
    return records


def _records(
    cell: Cell,
    timing: Mapping[str, Timing],
    kind: Mapping[str, str],
    programs: Mapping[str, Compiled],
    calls: Mapping[str, Callable[[], Any]],
    drawn: np.ndarray,
) -> list[dict]:
    best = min(t.median for name, t in timing.items() if kind[name] == "full")
    share = float(drawn.mean()) / cell.depth
    records = []
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


def _duel(records: Sequence[dict], calls: Mapping[str, Callable[[], Any]], repeats: int) -> float:
    """Seconds of the tuned program over those of the quickest one, timed again beside each other; 1
    where it is the quickest.
    """
    told = [r for r in records if r["kind"] in ("executor", "trial")]
    best = min(told, key=lambda r: r["seconds"])["program"]
    if best == "tuned":
        return 1.0
    timing = measure({name: calls[name] for name in ("tuned", best)}, DUEL * repeats)
    return timing["tuned"].median / timing[best].median
