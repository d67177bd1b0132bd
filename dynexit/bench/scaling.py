"""Dynamic depth on several devices: weak scaling, and imbalance of depths between devices.

    python -m dynexit.bench.scaling weak --devices 1 2 4 8
    python -m dynexit.bench.scaling imbalance --devices 8 256 4096 --report runs/digits/report.json

`weak` runs on virtual devices of this machine's CPU, in a process of its own. Its counts are exact
and depend on no clock. Its seconds are those of the host and not of a pod. `imbalance` draws depths
from the histogram of a run and needs no device.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dynexit.bench.imbalance import formula, simulated
from dynexit.core.shapes import Int

# of `dynexit train experiments/digits_vit.py`, seed 0: 450 digits of the test split
DIGITS = (360, 66, 21, 3)
WIDTH = 32
CALLS = 20


class Weak(NamedTuple):
    """One number of devices, each with the same number of rows.

    Attributes:
      devices: D.
      collectives: inside of the loop over depth of `run_until` under data parallelism.
      busiest: rows x blocks of the busiest device, over those of one device alone.
      rebalanced: the same with survivors redistributed.
      placing: host seconds until rows are on their devices, per call.
      dispatch: host seconds until a call returns, before its result is ready.
      call: seconds of a call.
    """

    devices: int
    collectives: int
    busiest: float
    rebalanced: float
    placing: float
    dispatch: float
    call: float


def weak(
    counts: Sequence[int],
    histogram: Sequence[float],
    rows: int,
    rebalance: Sequence[int],
    seed: int = 0,
) -> list[Weak]:
    """Measures every number of devices in this process.

    The depths of D devices are D copies of those of one device, shuffled. Every number of devices
    therefore has the same work for each device on average.

    Args:
      counts: numbers of devices; the process must have the largest.
      histogram: how often a row exits after 1, 2, ... E blocks.
      rows: rows on each device.
      rebalance: depths after which survivors are redistributed.
      seed: of the shuffling.
    """
    import jax

    if jax.device_count() < max(counts):
        raise ValueError(f"`counts` needs {max(counts)} devices, got {jax.device_count()}")
    one = stratified(histogram, rows)
    alone = _measured(1, one, len(histogram), ()).executed[0]
    found = []
    for count in counts:
        depths = np.random.default_rng(seed).permutation(np.tile(one, count))
        ran = _measured(count, depths, len(histogram), ())
        again = _measured(count, depths, len(histogram), tuple(rebalance))
        inside = _in_loop(count, depths, len(histogram))
        work = max(ran.executed) / alone, max(again.executed) / alone
        found.append(Weak(count, inside, *work, *ran.seconds))
    return found


def stratified(histogram: Sequence[float], rows: int) -> Int[np.ndarray, "B"]:
    """Depths of `rows` rows whose frequencies are those of the histogram.

    Example:
      >>> stratified((3, 1), 8).tolist()
      [1, 1, 1, 1, 1, 1, 2, 2]
    """
    until = np.cumsum(np.asarray(histogram, float)) / np.sum(histogram)
    return 1 + np.searchsorted(until, (np.arange(rows) + 0.5) / rows).astype(np.int32)


class _Ran(NamedTuple):
    executed: list[int]
    seconds: tuple[float, float, float]


def _parts(count: int, depths: np.ndarray, blocks: int) -> tuple[Any, ...]:
    """Step, criterion and state of a small residual network whose rows exit at given depths."""
    import jax
    import jax.numpy as jnp

    from dynexit.criteria.confidence import at_depth
    from dynexit.engine.steps import stacked_step

    w = 0.1 * jax.random.normal(jax.random.key(0), (blocks, WIDTH, WIDTH))
    step = stacked_step(lambda p, h: h + jnp.tanh(h @ p), lambda p, h: h[:, :2], w)
    mesh = jax.make_mesh(
        (count,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:count]
    )
    state = np.random.default_rng(1).normal(size=(len(depths), WIDTH)).astype(np.float32)
    return step, at_depth(jnp.asarray(depths)), state, mesh


def _measured(count: int, depths: np.ndarray, blocks: int, rebalance: tuple[int, ...]) -> _Ran:
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from dynexit.engine.executors.sharded import run_sharded

    step, rule, state, mesh = _parts(count, depths, blocks)
    split = NamedSharding(mesh, PartitionSpec("data"))
    executed, seconds = [], []
    for _ in range(CALLS + 1):
        start = time.perf_counter()
        placed = jax.block_until_ready(jax.device_put(state, split))
        put = time.perf_counter()
        halted = run_sharded(step, placed, blocks, rule, mesh, rebalance=rebalance, tile=1)
        returned = time.perf_counter()
        executed = jax.block_until_ready(halted).rows_executed.tolist()
        seconds.append((put - start, returned - put, time.perf_counter() - put))
    median = lambda k: statistics.median(each[k] for each in seconds[1:])
    return _Ran(executed, (median(0), median(1), median(2)))


def _in_loop(count: int, depths: np.ndarray, blocks: int) -> int:
    """Collectives inside of the loop over depth, from the compiled programs of two executors."""
    import jax
    from jax.sharding import PartitionSpec as P

    from dynexit.criteria.confidence import max_probability_above
    from dynexit.engine.collectives import collectives
    from dynexit.engine.run import Executor, run_until

    executors: tuple[Executor, ...] = ("compacted", "masked")
    step, _, state, mesh = _parts(count, depths, blocks)
    rule, found = max_probability_above(0.9), 0
    for executor in executors:

        def run(state: Any, executor: Executor = executor) -> Any:
            return run_until(step, state, blocks, rule, executor).output

        spread = jax.shard_map(run, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
        program = jax.jit(spread).lower(state).compile()
        found += sum(each.apart for each in collectives(program.as_text() or ""))
    return found


def on_virtual_devices(words: Sequence[str], devices: int, seconds: float = 900) -> str:
    """Runs this module in a process with so many virtual CPU devices; returns what it printed.

    Raises:
      RuntimeError: the process failed; the error has its last lines.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "dynexit.bench.scaling", *words, "--here"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    if done.returncode:
        raise RuntimeError("\n".join(done.stderr.splitlines()[-10:]))
    return done.stdout


def show_weak(found: Sequence[Weak], rebalance: Sequence[int]) -> None:
    """Prints a table in Markdown."""
    after = ", ".join(map(str, rebalance))
    print(
        "| devices | collectives in the loop | busiest device | rebalanced after "
        f"{after} | placing ms | dispatch ms | call ms |\n|---|---|---|---|---|---|---|"
    )
    for each in found:
        host = " | ".join(f"{1e3 * s:.2f}" for s in (each.placing, each.dispatch, each.call))
        print(
            f"| {each.devices} | {each.collectives} | {each.busiest:.3f} | {each.rebalanced:.3f} "
            f"| {host} |"
        )


def show_imbalance(
    histogram: Sequence[float], counts: Sequence[int], rows: Sequence[int], draws: int
) -> None:
    """Prints the busiest device over the mean, by the formula and by draws."""
    blocks = len(histogram)
    exchanges = [(), (1,), tuple(d for d in (1, 2, 4, 8) if d < blocks), tuple(range(1, blocks))]
    exchanges = list(dict.fromkeys(exchanges))
    named = " | ".join(f"after {', '.join(map(str, e))}" if e else "never" for e in exchanges)
    print(f"| devices | rows on each | formula | {named} |\n|---|---|---|{'---|' * len(exchanges)}")
    for count in counts:
        for each in rows:
            shape = np.asarray(histogram, float), each, count
            drawn = [simulated(*shape, rebalance=e, draws=draws).waited for e in exchanges]
            values = " | ".join(f"{value:.3f}" for value in (formula(*shape), *drawn))
            print(f"| {count} | {each} | {values} |")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m dynexit.bench.scaling")
    parser.add_argument("part", choices=("weak", "imbalance"))
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rows", type=int, nargs="+", default=[64], help="rows on each device")
    parser.add_argument("--report", type=Path, help="report.json of a run: its depth histogram")
    parser.add_argument("--rebalance", type=int, nargs="+", help="weak: depths; all by default")
    parser.add_argument("--draws", type=int, default=5, help="imbalance: batches that are drawn")
    parser.add_argument("--here", action="store_true", help="weak: on this process's devices")
    options = parser.parse_args(argv)
    histogram = DIGITS
    if options.report is not None:
        histogram = json.loads(options.report.read_text())["rows_per_exit"]
    if options.part == "imbalance":
        show_imbalance(histogram, options.devices, options.rows, options.draws)
        return 0
    if not options.here:
        words = sys.argv[1:] if argv is None else list(argv)
        print(on_virtual_devices(words, max(options.devices)), end="")
        return 0
    rebalance = options.rebalance or range(1, len(histogram))
    for rows in options.rows:
        print(f"{rows} rows on each device:\n")
        show_weak(weak(options.devices, histogram, rows, tuple(rebalance)), tuple(rebalance))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
