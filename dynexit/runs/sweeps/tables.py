"""The table of a sweep: in the terminal, `sweep.md`, `sweep.csv` and `sweep.png`."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dynexit.core.files import replacing
from dynexit.runs.pipeline import table
from dynexit.runs.run_folder import write_text
from dynexit.runs.sweeps.grid import short_names
from dynexit.runs.sweeps.record import FAILED, FIGURES, FINISHED, Content

MARKDOWN, CSV, PICTURE = "sweep.md", "sweep.csv", "sweep.png"


class Column(NamedTuple):
    """A column of the table: a figure, its title, the factor and decimals that it is shown with."""

    figure: str
    title: str
    factor: float = 1.0
    decimals: int = 2


COLUMNS = (
    Column("accuracy_full", "accuracy full %", 100),
    Column("accuracy_dynamic", "accuracy dynamic %", 100),
    Column("mean_depth", "mean depth"),
    Column("flops_ratio", "FLOPs %", 100, 1),
    Column("seconds_dynamic", "seconds", 1, 4),
    Column("speedup", "speed-up"),
    Column("efficiency", "efficiency"),
)


def write_summary(folder: Path, content: Content) -> None:
    """Prints the table and writes `sweep.md`, `sweep.csv` and, with a finished run, `sweep.png`.

    Args:
      folder: the sweep's.
      content: of `sweep.json`.
    """
    head, rows = head_of(content), rows_of(content)
    write_text(folder / CSV, csv_text(content))
    drawn = draw(folder, content)
    write_text(folder / MARKDOWN, markdown(content, drawn is not None))
    table(f"{content['name']}: {counted(content)}", head, rows, width=150)
    for point in content["points"]:
        if point["state"] == FAILED:
            print(f"{point['run']} failed: {point.get('why', '')}")
    print(folder)


def counted(content: Content) -> str:
    """How many runs are in which state, in words."""
    states = [point["state"] for point in content["points"]]
    others = [f"{states.count(s)} {s}" for s in dict.fromkeys(states) if s != FINISHED]
    return ", ".join([f"{states.count(FINISHED)} of {len(states)} runs finished", *others])


def head_of(content: Content) -> list[str]:
    """The titles of the columns."""
    return [*_axes(content).values(), "runs", *(column.title for column in COLUMNS)]


def rows_of(content: Content) -> list[list[str]]:
    """A row for each combination of the settings: mean, and sample standard deviation over seeds.

    Example:
      >>> shown({"mean": 0.98412, "sd": 0.0031}, COLUMNS[0]), shown({"mean": 1, "sd": None},
      ...     COLUMNS[2]), shown({"mean": None, "sd": None}, COLUMNS[2])
      ('98.41 ± 0.31', '1.00', '')
    """
    return [
        [
            *(_word(group["values"][name]) for name in _axes(content)),
            str(group["runs"]),
            *(shown(group[column.figure], column) for column in COLUMNS),
        ]
        for group in content["groups"]
    ]


def shown(figure: dict[str, float | None], column: Column) -> str:
    """`mean ± sd` in the column's unit; the mean alone for one run, empty for none."""
    words = [
        f"{value * column.factor:.{column.decimals}f}"
        for value in (figure["mean"], figure["sd"])
        if value is not None
    ]
    return " ± ".join(words)


def markdown(content: Content, with_picture: bool) -> str:
    """`sweep.md`: the table, the runs and the command."""
    head, rows = head_of(content), rows_of(content)
    lines = [f"# Sweep of {content['name']}", "", f"{counted(content)}."]
    lines += ["", "Mean ± sample standard deviation over the seeds.", ""]
    lines += _markdown_table(head, rows)
    if with_picture:
        lines += ["", f"![accuracy against FLOPs]({PICTURE})"]
    runs = [[p["run"], p["state"], p.get("why", "")] for p in content["points"]]
    lines += ["", "## Runs", "", *_markdown_table(["run", "state", "reason"], runs)]
    return "\n".join([*lines, "", "```", " ".join(content["command"]), "```", ""])


def csv_text(content: Content) -> str:
    """`sweep.csv`: the settings, the number of runs, and each figure as `_mean` and `_sd`.

    Fractions are not percentages here.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    axes = _axes(content)
    writer.writerow([*axes, "runs", *(f"{name}_{kind}" for name in FIGURES for kind in KINDS)])
    for group in content["groups"]:
        figures = [group[name][kind] for name in FIGURES for kind in KINDS]
        writer.writerow(
            [
                *(_word(group["values"][name]) for name in axes),
                group["runs"],
                *("" if value is None else value for value in figures),
            ]
        )
    return text.getvalue()


KINDS = ("mean", "sd")


def draw(folder: Path, content: Content) -> Path | None:
    """Draws `sweep.png`: accuracy against FLOPs per row; None without a finished run."""
    groups = [group for group in content["groups"] if group["runs"]]
    if not groups:
        return None
    from dynexit.evaluation.reports.sweep_plot import accuracy_of_groups

    axes = _axes(content)
    labels = [
        ", ".join(f"{axes[name]} {_word(value)}" for name, value in group["values"].items())
        or content["name"]
        for group in groups
    ]
    with replacing(folder / PICTURE) as draft:
        accuracy_of_groups(groups, labels, content["name"], draft)
    return folder / PICTURE


def _axes(content: Content) -> dict[str, str]:
    """Short names of the settings that make the rows, by their dotted names."""
    groups = content["groups"]
    return short_names(list(groups[0]["values"])) if groups else {}


_word: Callable[[Any], str] = lambda value: (
    " ".join(map(str, value)) if isinstance(value, list) else str(value)
)


def _markdown_table(head: list[str], rows: list[list[str]]) -> list[str]:
    line = lambda words: "| " + " | ".join(word.replace("|", "\\|") for word in words) + " |"
    return [line(head), "|" + "---|" * len(head), *map(line, rows)]
