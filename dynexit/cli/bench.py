"""`dynexit bench`: the schedules side by side on this machine, on one yardstick: a pre-norm transformer with drawn depths."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynexit.cli.pipeline import say, table
from dynexit.cli.positional import split
from dynexit.cli.settings import Flag, SettingsError, parse

FLAGS = (
    Flag("batch", int, 128, "rows"),
    Flag("width", int, 192, "channels; a multiple of 64"),
    Flag("depth", int, 12, "blocks"),
    Flag("tokens", int, 64, "tokens per row"),
    Flag("mean", float, 4.0, "mean of the geometric distribution that depths are drawn from, cut off at --depth"),
    Flag("repeats", int, 7, "interleaved timings; the median is shown"),
    Flag("seed", int, 0, "of weights, inputs and depths"),
    Flag("out", str | None, None, "JSON file to write besides"),
)


def bench(argv: Sequence[str]) -> int:
    """Times full depth, whole and in tiles, against every schedule, in one interleaved run."""
    _, rest = split(argv, "dynexit bench [--batch 128 ...]", least=0, most=0)
    o, _ = parse(rest, "dynexit bench", FLAGS)
    found = [f"--{n} must be at least 1, got {o[n]}" for n in ("batch", "width", "depth", "tokens", "mean", "repeats") if o[n] < 1]
    found += [f"--width must be a multiple of 64, got {o['width']}"] if o["width"] % 64 else []
    if found:
        raise SettingsError("\n  ".join(found))
    result = _measure(o)
    names = ("program", "seconds", "lowest-highest", "speed-up", "efficiency", "occupancy")
    rows = [
        (
            name,
            f"{r['seconds']:.4f}",
            f"{r['low']:.4f}-{r['high']:.4f}",
            f"{r['speedup']:.2f}",
            f"{r['efficiency']:.2f}" if "efficiency" in r else "",
            f"{r['occupancy']:.0%}" if "occupancy" in r else "",
        )
        for name, r in result["programs"].items()
    ]
    title = f"{result['hardware']}: batch {o['batch']}, width {o['width']}, {o['tokens']} tokens, "
    title += f"mean depth {result['mean_depth']:.2f} of {o['depth']}"
    table(title, names, rows)
    if o["out"]:
        Path(o["out"]).write_text(json.dumps(result, indent=2) + "\n")
    return 0


def _block(p, h):
    """A pre-norm transformer block with heads of 64 channels, no biases; `h` `[b, L, D]`."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    norm = lambda x: (x - x.mean(-1, keepdims=True)) * lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)
    heads = lambda x: x.reshape(*x.shape[:2], -1, 64)
    q, k, v = (heads(x) for x in jnp.split(norm(h) @ p["qkv"], 3, -1))
    h = h + jax.nn.dot_product_attention(q, k, v).reshape(h.shape) @ p["out"]
    return h + jax.nn.gelu(norm(h) @ p["up"]) @ p["down"]


def _measure(o: dict) -> dict:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from dynexit.analysis.latency import TILES, measure
    from dynexit.cli.pipeline import hardware
    from dynexit.exits import criteria
    from dynexit.exits.run import run_full, run_until
    from dynexit.exits.steps import stacked_step

    width, depth = o["width"], o["depth"]
    keys = iter(jax.random.split(jax.random.key(o["seed"]), 6))
    weight = lambda rows, columns: 0.02 * jax.random.normal(next(keys), (depth, rows, columns))
    sizes = {
        "qkv": (width, 3 * width),
        "out": (width, width),
        "up": (width, 4 * width),
        "down": (4 * width, width),
        "head": (width, 10),
    }
    params = {name: weight(*size) for name, size in sizes.items()}
    h = jax.random.normal(next(keys), (o["batch"], o["tokens"], width))
    depths = jnp.asarray(np.minimum(np.random.default_rng(o["seed"]).geometric(1 / o["mean"], o["batch"]), depth), jnp.int32)
    step = lambda params: stacked_step(_block, lambda p, h: h.mean(1) @ p["head"], params)
    full = jax.jit(lambda params, h: run_full(step(params), h, depth)[1])
    programs = {"full": lambda: full(params, h)}
    for tile in (t for t in TILES if t < o["batch"] and o["batch"] % t == 0):
        tiled = jax.jit(lambda params, h, t=tile: jax.lax.map(lambda x: full(params, x), h.reshape(-1, t, *h.shape[1:])))
        programs[f"full tiled {tile}"] = lambda tiled=tiled: tiled(params, h)
    executed = {}
    for schedule in ("compacted", "masked", "per_row"):

        def run(params, h, depths, schedule: Any = schedule):
            halted = run_until(step(params), h, depth, criteria.at_depth(depths), schedule)
            return halted.output, halted.rows_executed

        program = jax.jit(run)
        programs[schedule] = lambda program=program: program(params, h, depths)
        executed[schedule] = int(programs[schedule]()[1])
    say(f"timing {', '.join(programs)}, {o['repeats']} times in turns")
    timing = measure(programs, o["repeats"])
    best = min(t.median for name, t in timing.items() if name.startswith("full"))
    ideal = best * float(depths.mean()) / depth
    shown = {}
    for name, t in timing.items():
        shown[name] = {"seconds": t.median, "low": t.low, "high": t.high, "speedup": best / t.median}
        if name in executed:
            shown[name] |= {"efficiency": ideal / t.median, "occupancy": int(depths.sum()) / executed[name]}
    return {"hardware": hardware(), "options": o, "mean_depth": float(depths.mean()), "seconds_ideal": ideal, "programs": shown}
