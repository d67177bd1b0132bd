"""`dynexit bench`: the schedules side by side on this machine, in interleaved runs, on one
yardstick.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from dynexit.cli.bench_tables import by_load, show, summarize
from dynexit.cli.options import Flag, parse
from dynexit.cli.positional import split
from dynexit.runs.experiment_file import SettingsError
from dynexit.runs.pipeline import hardware, log
from dynexit.runs.run_folder import versions

BLOCKS = ("transformer", "tied", "mixer", "conv")
DISTRIBUTIONS = ("geometric", "uniform", "bimodal", "together")
PEERS = ("torch", "masked")
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
    Flag(
        "peer",
        tuple[str, ...],
        (),
        "torch: PyTorch, eager, regrouping survivors after every block; masked: vmap of a while loop",
    ),
    Flag(
        "exhaustive",
        bool,
        False,
        "also time many tilings, and say how near the tuned one comes to the best",
    ),
    Flag(
        "out",
        str | None,
        None,
        "JSON file to write besides; a figure of the same name goes beside it",
    ),
)


def bench(argv: Sequence[str]) -> int:
    """Times full depth, whole and in tiles, against every schedule and peers."""
    _, rest = split(argv, "dynexit bench [--batch 8 32 128 ...]", least=0, most=0)
    o, _ = parse(rest, "dynexit bench", FLAGS)
    if found := _faults(o):
        raise SettingsError("\n  ".join(found))
    from dynexit.bench.masked_peer import vmapped
    from dynexit.bench.problems import cells
    from dynexit.bench.torch_peer import regrouping
    from dynexit.bench.yardstick import run_cell
    from dynexit.evaluation.reports import plots

    peers = {name: {"torch": regrouping, "masked": vmapped}[name] for name in o["peer"]}
    loads = [(d, m) for d in o["distribution"] for m in o["mean"]]
    records = []
    for cell in cells(o["block"], o["width"], o["tokens"], o["depth"], o["batch"], o["dtype"]):
        found = run_cell(cell, loads, o["repeats"], peers, log, o["exhaustive"])
        records += found
        for group in by_load(found):
            show(group)
    summarize(records, tuple(peers))
    if o["out"]:
        path = Path(o["out"])
        content = {"hardware": hardware(), "versions": versions(), "options": o, "records": records}
        path.write_text(json.dumps(content, indent=2) + "\n")
        drawn = [r for r in records if r["kind"] != "trial"]
        log(f"wrote {path} and {plots.efficiency_by_depth(drawn, path.with_suffix('.png'))}")
    return 0


def _faults(o: dict) -> list[str]:
    found = [
        f"--{n} must be at least 1, got {min(o[n])}"
        for n in ("batch", "width", "depth")
        if not o[n] or min(o[n]) < 1
    ]
    found += [f"--{n} must be at least 1, got {o[n]}" for n in ("tokens", "repeats") if o[n] < 1]
    found += [f"--width must be a multiple of 64, got {w}" for w in o["width"] if w % 64]
    found += [
        f"--mean must lie above 0 and up to 1, got {m:g}" for m in o["mean"] if not 0 < m <= 1
    ]
    known = {
        "block": BLOCKS,
        "distribution": DISTRIBUTIONS,
        "dtype": ("float32", "bfloat16"),
        "peer": PEERS,
    }
    found += [
        f"--{n} must be of {', '.join(names)}, got {x}"
        for n, names in known.items()
        for x in o[n]
        if x not in names
    ]
    if "conv" in o["block"] and round(o["tokens"] ** 0.5) ** 2 != o["tokens"]:
        found.append(f"--tokens must be a square number for conv, got {o['tokens']}")
    if "torch" in o["peer"] and (
        set(o["block"]) - {"transformer", "tied"} or set(o["dtype"]) != {"float32"}
    ):
        found.append("--peer torch has float32 transformers alone")
    return found
