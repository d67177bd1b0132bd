"""The description of the machine and the table of the device suite."""

import importlib.metadata
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax

from dynexit.bench.device.state import Record, State


def hardware() -> Record:
    """Devices, versions, flags and processor, as entries of the JSON file."""
    devices = jax.devices()
    affinity = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    packages = "jax jaxlib flax numpy torch jax-cuda12-plugin jax-cuda13-plugin libtpu".split()
    flags = {k: v for k, v in sorted(os.environ.items()) if k.startswith(("XLA_", "JAX_", "TF_"))}
    return {
        "platform": devices[0].platform,
        "device": devices[0].device_kind,
        "devices": len(devices),
        "versions": {name: v for name in packages if (v := _version(name))},
        "python": platform.python_version(),
        "environment": flags,
        "cpu": _processor(),
        "cores": len(affinity(0)),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def table(suite: State) -> str:
    """The results as a text table of a few dozen lines."""
    of = lambda section: [r for r in suite.records if r["section"] == section]
    machine = suite.hardware
    lines = [f"device suite{' (small)' if suite.small else ''}: {machine['device']}"]
    lines[0] += f" x{machine['devices']} ({machine['platform']}), jax {machine['versions']['jax']}"
    lines += _loops(of("loops"))
    for section, title in (("blocks", "blocks"), ("streaming", "streaming, queue")):
        for batch in dict.fromkeys(r["batch"] for r in of(section)):
            here = [r for r in of(section) if r["batch"] == batch]
            lines += _by_mean(f"{title} {batch}, {here[0]['dtype']}", here)
    lines += _training(of("training"))
    for batch in dict.fromkeys(r["batch"] for r in of("peer")):
        lines += _by_mean(f"PyTorch {batch}", [r for r in of("peer") if r["batch"] == batch])
    for batch in dict.fromkeys(r["batch"] for r in of("decoding")):
        lines += _decoding([r for r in of("decoding") if r["batch"] == batch])
    lines += [f"skipped: {s['section']}, {s['what']}: {s['reason']}" for s in suite.skipped]
    lines += [f"ERROR: {e['section']}, {e['what']}: {e['error']}" for e in suite.errors]
    lines += [f"{len(suite.records)} records, {suite.elapsed():.0f} s; {suite.out or 'no file'}"]
    return "\n".join(lines)


def _loops(records: Sequence[Record]) -> list[str]:
    variants = list(dict.fromkeys(r["variant"] for r in records))
    names = dict.fromkeys(r["program"] for r in records)
    cell = {(r["program"], r["variant"]): f"{r['microseconds']:.4g}" for r in records}
    rows = [[name, *(cell.get((name, v), "") for v in variants)] for name in names]
    return _grid(["loops, microseconds per iteration", *variants], rows)


def _by_mean(title: str, records: Sequence[Record]) -> list[str]:
    """Programs by mean depth; the fastest program with exits has an asterisk."""
    means = sorted({r["mean_depth"] for r in records})
    cells: dict[tuple[str, float], str] = {}
    for mean in means:
        here = [r for r in records if r["mean_depth"] == mean]
        dynamic = [r["seconds"] for r in here if "full" not in r["program"]]
        for r in here:
            best = " *" if dynamic and r["seconds"] == min(dynamic) else ""
            wrong = "" if r.get("agrees", True) else " WRONG"
            share = f" {r['efficiency']:4.0%}" if "efficiency" in r else "     "
            text = f"{1e3 * r['seconds']:9.4g} ms x{r['speedup']:5.2f}{share}{best}{wrong}"
            cells[r["program"], mean] = text
    names = dict.fromkeys(r["program"] for r in records)
    rows = [[name, *(cells.get((name, m), "") for m in means)] for name in names]
    heads = [f"{m:.0%}: time, speed-up, efficiency" for m in means]
    return _grid([title, *heads], rows)


def _training(records: Sequence[Record]) -> list[str]:
    rows: list[list[str]] = []
    for r in records:
        size = lambda name, r=r: f"{r[name] / 2**20:.4g}" if name in r else ""
        row = [r["program"], f"{1e3 * r['seconds']:.4g}", size("temporary_bytes")]
        rows.append([*row, size("peak_bytes"), f"{r['compile_seconds']:.3g}"])
    heads = ["ms", "temporary MiB", "peak MiB", "compile s"]
    title = f"training, batch {records[0]['batch']}" if records else ""
    return _grid([title, *heads], rows)


def _decoding(records: Sequence[Record]) -> list[str]:
    rows: list[list[str]] = []
    for r in records:
        row = [r["program"], f"{1e3 * r['seconds']:.4g}", f"{r['relative']:.2f}"]
        needed = r.get("acceptance_to_gain")
        gain = f"{needed:.0%}" if needed is not None else "never" if "speedup" in r else ""
        rows.append([*row, f"x{r['speedup']:.2f}" if "speedup" in r else "", gain])
    heads = ["ms a round", "to full", "speed-up, 80% accepted", "gains from"]
    return _grid([f"decoding {records[0]['batch']}, {records[0]['dtype']}", *heads], rows)


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    rows = list(rows)
    if not rows:
        return []
    widths = [max(len(r[k]) for r in (heads, *rows)) for k in range(len(heads))]
    line = lambda r: "  ".join(x.ljust(w) for x, w in zip(r, widths, strict=True))
    return ["", line(heads).rstrip(), *(line(r).rstrip() for r in rows)]
