"""The tables of `dynexit bench`: one per network, batch and load, and a summary."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from dynexit.runs.pipeline import hardware, table

Record: TypeAlias = dict[str, Any]  # of `run_cell`

CELL = ("block", "width", "tokens", "depth", "dtype", "batch", "distribution", "target_mean")
NEAR = 1.05  # ratio to the fastest that counts as near


def by_load(records: Iterable[Record]) -> list[list[Record]]:
    """Groups records by network, batch and load, in the order of the records.

    Args:
      records: from `run_cell`.

    Returns:
      The groups.
    """
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record[key] for key in CELL), []).append(record)
    return list(groups.values())


def show(records: Sequence[Record]) -> None:
    """Prints the table of one network, batch and load.

    Args:
      records: one group of `by_load`.
    """
    optional = lambda record, key, form: format(record[key], form) if key in record else ""
    rows = [
        (
            r["program"],
            f"{r['seconds']:.4f}",
            f"{r['low']:.4f}-{r['high']:.4f}",
            f"{r['speedup']:.2f}",
            optional(r, "efficiency", ".2f"),
            optional(r, "occupancy", ".0%"),
            optional(r, "compile_seconds", ".1f"),
            f"{r['temporary_bytes'] / 2**20:.1f}" if "temporary_bytes" in r else "",
            f"{r['program_bytes'] / 2**10:.0f}" if "program_bytes" in r else "",
        )
        for r in records
    ]
    r = records[0]
    title = f"{r['block']}, width {r['width']}, {r['tokens']} tokens, {r['depth']} blocks, "
    title += f"{r['dtype']}, batch {r['batch']}: {r['distribution']}, mean depth {r['mean']:.0%}"
    head = (
        "program",
        "seconds",
        "lowest-highest",
        "speed-up",
        "efficiency",
        "occupancy",
        "compile s",
        "temp MiB",
        "text KiB",
    )
    table(f"{hardware()}\n{title}", head, rows, width=125)


def summarize(records: Sequence[Record], peers: Sequence[str]) -> None:
    """Prints a row per network, batch and load, with the tuned, default and masked executors.

    Args:
      records: from `run_cell`, of all cells.
      peers: names of peers; their column is seconds of the peer / seconds tuned, empty if the peer
        was skipped.
    """
    rows, ratios = [], []
    for group in by_load(records):
        by_name = {r["program"]: r for r in group}
        tuned, first = by_name["tuned"], group[0]
        best = min(r["seconds"] for r in group if r["kind"] == "full")
        row = [
            f"{first['block']} {first['width']} x {first['depth']} {first['dtype']}",
            str(first["batch"]),
            f"{first['distribution']} {first['target_mean']:g}",
            f"{best:.4f}",
            f"{tuned['seconds']:.4f}",
            *(f"{by_name[name]['efficiency']:.2f}" for name in ("tuned", "compacted", "masked")),
        ]
        for name in (f"peer {p}" for p in peers):
            row.append(
                f"{by_name[name]['seconds'] / tuned['seconds']:.2f}" if name in by_name else ""
            )
        if "tuned_over_best" in tuned:
            ratios.append(tuned["tuned_over_best"])
            row.append(f"{ratios[-1]:.2f}")
        rows.append(row)
    head = [
        "network",
        "batch",
        "depths",
        "full s",
        "tuned s",
        "eff. tuned",
        "compacted",
        "masked",
        *(f"{p} / tuned" for p in peers),
    ]
    title = f"{hardware()}\nall cells: efficiency, and seconds of peers relative to tuned"
    table(title, [*head, "tuned / best"] if ratios else head, rows, width=180)
    if ratios:
        near = sum(ratio <= NEAR for ratio in ratios)
        print(f"tuned is within 5% of the fastest in {near} of {len(ratios)} cells")
