"""`dynexit bench`: interleaved timings of the executors, or the device suite, on this machine."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dynexit.cli.bench_tables import by_load, show, summarize
from dynexit.cli.options import Flag, Options, parse
from dynexit.cli.positional import split
from dynexit.runs.experiment_file import SettingsError
from dynexit.runs.pipeline import hardware, log
from dynexit.runs.run_folder import versions

BLOCKS = ("transformer", "tied", "mixer", "conv", "language")
DISTRIBUTIONS = ("geometric", "uniform", "bimodal", "together")
PEERS = ("torch", "masked")
SUITE = Flag(
    "suite",
    Literal["executors", "device"],
    "executors",
    "executors: random blocks at sampled depths; device: loops, blocks, streaming and training on "
    "one device, with the options that `--suite device --help` shows",
)
EXECUTORS = (
    SUITE,
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
        "torch: eager PyTorch that removes finished rows after every block; masked: vmap of a "
        "while loop",
    ),
    Flag(
        "exhaustive",
        bool,
        False,
        "also time many tilings, and compare the tuned one with the fastest",
    ),
    Flag("out", str | None, None, "JSON file to write, with a figure of the same name beside it"),
)
DEVICE = (
    SUITE,
    Flag("out", str | None, None, "JSON file, written after every measurement"),
    Flag("small", bool, False, "a small network, to check that the suite works"),
    Flag("seconds", float, 450.0, "time budget; what does not fit into it is skipped"),
)


def bench(argv: Sequence[str]) -> int:
    """Runs one of the benchmark suites.

    Args:
      argv: the words after `dynexit bench`.

    Returns:
      The exit code: 0; 1 if the device suite recorded an error.

    Raises:
      SettingsError: invalid options.
    """
    _, rest = split(argv, "dynexit bench [--suite executors | device]", least=0, most=0)
    flags = DEVICE if _suite(rest) == "device" else EXECUTORS
    o, _ = parse(rest, "dynexit bench", flags)
    invalid = _invalid_device(o) if flags is DEVICE else _invalid_executors(o)
    if invalid:
        raise SettingsError("\n  ".join(invalid))
    return _device(o) if flags is DEVICE else _executors(o)


def _suite(words: Sequence[str]) -> str:
    """The value of `--suite`, which decides what the other options are."""
    for k, word in enumerate(words):
        if word.startswith("--suite="):
            return word.removeprefix("--suite=")
        if word == "--suite" and k + 1 < len(words):
            return words[k + 1]
    return SUITE.default


def _device(o: Options) -> int:
    from dynexit.bench import device_suite

    return 1 if device_suite.run(o["out"], o["small"], o["seconds"]).errors else 0


def _executors(o: Options) -> int:
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
        plotted = [r for r in records if r["kind"] != "trial"]
        log(f"wrote {path} and {plots.efficiency_by_depth(plotted, path.with_suffix('.png'))}")
    return 0


def _invalid_device(o: Options) -> list[str]:
    seconds = o["seconds"]
    return [] if seconds >= 0 else [f"--seconds must be at least 0, got {seconds:g}"]


def _invalid_executors(o: Options) -> list[str]:
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
        found.append("--peer torch requires float32 transformers")
    return found
