"""`dynexit bench`: the schedules side by side on this machine, in interleaved runs, on one yardstick."""

import json
from collections.abc import Sequence
from pathlib import Path

from dynexit.cli.pipeline import hardware, say, table
from dynexit.cli.positional import split
from dynexit.cli.run_folder import versions
from dynexit.cli.settings import Flag, SettingsError, parse

BLOCKS = ("transformer", "tied", "mixer", "conv")
DISTRIBUTIONS = ("geometric", "uniform", "bimodal", "together")
FLAGS = (
    Flag("block", tuple[str, ...], ("transformer",), f"of {', '.join(BLOCKS)}"),
    Flag("batch", tuple[int, ...], (8, 32, 128), "rows"),
    Flag("width", tuple[int, ...], (192,), "channels; multiples of 64"),
    Flag("depth", tuple[int, ...], (12,), "blocks"),
    Flag("tokens", int, 64, "tokens per row; a square number for conv"),
    Flag("distribution", tuple[str, ...], ("geometric",), f"of depths: {', '.join(DISTRIBUTIONS)}"),
    Flag("mean", tuple[float, ...], (0.25, 0.5, 0.75, 1.0), "depth, as a fraction of all blocks"),
    Flag("dtype", tuple[str, ...], ("float32",), "float32, bfloat16"),
    Flag("repeats", int, 7, "interleaved timings of each program; the median is shown"),
    Flag("peer", str | None, None, "torch: also PyTorch, eager, regrouping survivors after every block"),
    Flag("out", str | None, None, "JSON file to write besides; a figure of the same name goes beside it"),
)


def bench(argv: Sequence[str]) -> int:
    """Times full depth, whole and in tiles, against every schedule and a peer."""
    _, rest = split(argv, "dynexit bench [--batch 8 32 128 ...]", least=0, most=0)
    o, _ = parse(rest, "dynexit bench", FLAGS)
    if found := _faults(o):
        raise SettingsError("\n  ".join(found))
    from dynexit.analysis import plots
    from dynexit.analysis.torch_peer import regrouping
    from dynexit.analysis.yardstick import cells, run_cell

    peers = {"torch": regrouping} if o["peer"] else {}
    loads = [(d, m) for d in o["distribution"] for m in o["mean"]]
    records = []
    for cell in cells(o["block"], o["width"], o["tokens"], o["depth"], o["batch"], o["dtype"]):
        found = run_cell(cell, loads, o["repeats"], peers, say)
        records += found
        for distribution, mean in dict.fromkeys((r["distribution"], r["mean"]) for r in found):
            _show(cell, distribution, mean, [r for r in found if (r["distribution"], r["mean"]) == (distribution, mean)])
    if o["out"]:
        path = Path(o["out"])
        content = {"hardware": hardware(), "versions": versions(), "options": o, "records": records}
        path.write_text(json.dumps(content, indent=2) + "\n")
        say(f"wrote {path} and {plots.efficiency_by_depth(records, path.with_suffix('.png'))}")
    return 0


def _faults(o: dict) -> list[str]:
    found = [f"--{n} must be at least 1, got {min(o[n])}" for n in ("batch", "width", "depth") if not o[n] or min(o[n]) < 1]
    found += [f"--{n} must be at least 1, got {o[n]}" for n in ("tokens", "repeats") if o[n] < 1]
    found += [f"--width must be a multiple of 64, got {w}" for w in o["width"] if w % 64]
    found += [f"--mean must lie above 0 and up to 1, got {m:g}" for m in o["mean"] if not 0 < m <= 1]
    known = {"block": BLOCKS, "distribution": DISTRIBUTIONS, "dtype": ("float32", "bfloat16")}
    found += [f"--{n} must be of {', '.join(names)}, got {x}" for n, names in known.items() for x in o[n] if x not in names]
    if "conv" in o["block"] and round(o["tokens"] ** 0.5) ** 2 != o["tokens"]:
        found.append(f"--tokens must be a square number for conv, got {o['tokens']}")
    if o["peer"] not in (None, "torch"):
        found.append(f"--peer must be torch, got {o['peer']}")
    elif o["peer"] and (set(o["block"]) - {"transformer", "tied"} or set(o["dtype"]) != {"float32"}):
        found.append("--peer torch has float32 transformers alone")
    return found


def _show(cell, distribution: str, mean: float, records: list[dict]) -> None:
    cut = lambda record, key, form: format(record[key], form) if key in record else ""
    rows = [
        (
            r["program"],
            f"{r['seconds']:.4f}",
            f"{r['low']:.4f}-{r['high']:.4f}",
            f"{r['speedup']:.2f}",
            cut(r, "efficiency", ".2f"),
            cut(r, "occupancy", ".0%"),
            cut(r, "compile_seconds", ".1f"),
            f"{r['temporary_bytes'] / 2**20:.1f}" if "temporary_bytes" in r else "",
        )
        for r in records
    ]
    title = f"{cell.block}, width {cell.width}, {cell.tokens} tokens, {cell.depth} blocks, {cell.dtype}, batch {cell.batch}: "
    head = ("program", "seconds", "lowest-highest", "speed-up", "efficiency", "occupancy", "compile s", "temp MiB")
    table(f"{hardware()}\n{title}{distribution}, mean depth {mean:.0%}", head, rows)
