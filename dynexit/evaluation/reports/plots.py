"""Curves of one run and comparisons of several. matplotlib is imported by the first drawing."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dynexit.evaluation.curves import upper_envelope

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

Figure: TypeAlias = "matplotlib.figure.Figure"
Axes: TypeAlias = "matplotlib.axes.Axes"
Content: TypeAlias = dict[str, Any]  # of `report.json`

INK, SOFT, DYNAMIC, FULL = "#22313f", "#9fb3c8", "#d1495b", "#00798c"
RUNS = ("#00798c", "#d1495b", "#edae49", "#66a182", "#2e4057", "#8d6a9f")


def figure_of(
    columns: int = 1, width: float = 5.6, height: float = 4.0
) -> tuple[Figure, np.ndarray]:
    """A figure without a window and its row of axes."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, columns, figsize=(width * columns, height), squeeze=False, layout="constrained"
    )
    for ax in axes[0]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(colors=INK)
        ax.grid(True, color="#e8edf2", linewidth=0.8)
        ax.set_axisbelow(True)
    return figure, axes[0]


def save(figure: Figure, path: Path) -> Path:
    """Writes the figure to `path`, closes it and returns the path."""
    from matplotlib import pyplot

    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def _accuracy_axis(ax: Axes, accuracies: Sequence[float]) -> None:
    """Percent, from a little below what matters to a little above the best."""
    values = np.asarray(accuracies, np.float64)
    top, low = values.max(), np.percentile(values, 5)
    margin = max(0.004, 0.12 * (top - low))
    ax.set_ylim(max(0.0, low - margin) * 100, min(1.005, top + margin) * 100)
    ax.set_ylabel("test accuracy (%)")


def accuracy_against_compute(content: Content, path: Path) -> Path:
    """Accuracy against FLOPs for every candidate, and against measured time where it was measured.

    Args:
      content: what `report.report` returned.
      path: the PNG to write.
    """
    timed = content["timed_points"]
    figure, axes = figure_of(1 if timed is None else 2)
    percent = lambda values: 100 * np.asarray(values, np.float64)
    curve, left = content["curve"], axes[0]
    per_exit = np.asarray(content["accuracy_per_exit"])
    exit_flops = np.asarray(content["flops_until_exit"]) / content["flops_full"]

    best = upper_envelope(np.asarray(curve["flops_ratio"]), np.asarray(curve["accuracy"]))
    left.scatter(
        percent(curve["flops_ratio"]),
        percent(curve["accuracy"]),
        s=10,
        color=SOFT,
        label="all thresholds",
        zorder=2,
    )
    left.plot(
        percent(curve["flops_ratio"])[best],
        percent(curve["accuracy"])[best],
        color=SOFT,
        linewidth=1.2,
        zorder=2,
    )
    left.plot(
        percent(exit_flops),
        percent(per_exit),
        "o--",
        color=FULL,
        markersize=4,
        linewidth=1,
        label="every row at one exit",
    )
    chosen = (100 * content["flops_ratio"], 100 * content["accuracy_dynamic"])
    left.scatter(
        *chosen,
        marker="*",
        s=190,
        color=DYNAMIC,
        edgecolor="white",
        label="operating point (chosen on calibration)",
        zorder=4,
    )
    left.axhline(
        100 * content["accuracy_full"], color=INK, linewidth=0.8, linestyle=":", label="full depth"
    )
    left.set_xlabel("mean FLOPs per row (% of full depth)")
    left.set_xlim(left=0)

    if timed is not None:
        _accuracy_against_time(content, axes[1])
    for ax in axes:
        _accuracy_axis(
            ax, [*curve["accuracy"], content["accuracy_full"], content["accuracy_dynamic"]]
        )
        ax.legend(fontsize=8, frameon=False, loc="lower right")
    figure.suptitle(f"{content['name']}: accuracy against compute", color=INK, fontsize=12)
    return save(figure, path)


def _accuracy_against_time(content: Content, right: Axes) -> None:
    timed = content["timed_points"]
    micro = lambda values: 1e6 * np.asarray(values, np.float64)
    right.plot(
        micro(timed["seconds_per_row"]),
        100 * np.asarray(timed["accuracy"]),
        "o-",
        color=SOFT,
        markersize=5,
        linewidth=1.2,
        label="thresholds along the curve",
    )
    here = 1e6 * content["seconds_dynamic"] / content["rows_timed"]
    there = 1e6 * content["seconds_full"] / content["rows_timed"]
    right.scatter(
        here,
        100 * content["accuracy_dynamic"],
        marker="*",
        s=190,
        color=DYNAMIC,
        edgecolor="white",
        zorder=4,
        label=f"operating point, speed-up {content['speedup']:.2f}",
    )
    right.scatter(
        there,
        100 * content["accuracy_full"],
        marker="D",
        s=45,
        color=INK,
        zorder=4,
        label="full depth (fastest program)",
    )
    right.set_xlabel(f"measured time per row (us), batch {content['batch_size']}")
    right.set_xlim(left=0)


def depth_histogram(content: Content, path: Path) -> Path:
    """How many rows of the test split exit at each depth.

    Args:
      content: what `report.report` returned.
      path: the PNG to write.
    """
    figure, (ax,) = figure_of(1, width=6.4)
    share = 100 * np.asarray(content["rows_per_exit"]) / content["examples"]
    depths = np.asarray(content["depth_of_exit"])
    gap = np.diff(depths, prepend=0).min()
    bars = ax.bar(depths, share, width=0.8 * gap, color=FULL, zorder=2)
    ax.bar_label(
        bars, [f"{s:.0f}" if s >= 0.5 else "" for s in share], fontsize=8, color=INK, padding=2
    )
    ax.axvline(
        content["mean_depth"],
        color=DYNAMIC,
        linewidth=1.5,
        label=f"mean {content['mean_depth']:.2f} of {content['depth']} blocks",
    )
    ax.set_xticks(depths)
    ax.set_xlabel("exit depth (blocks)")
    ax.set_ylabel("rows of the test split (%)")
    ax.grid(False, axis="x")
    ax.legend(frameon=False, fontsize=9)
    ax.set_title(f"{content['name']}: exit depth", color=INK, fontsize=12)
    return save(figure, path)


def compare_runs(contents: Sequence[Content], names: Sequence[str], path: Path) -> Path:
    """Several runs in one figure: accuracy against the fraction of FLOPs and the speed-up.

    Args:
      contents: one `report.json` a run.
      names: the entries of the legend.
      path: the file to write; its ending gives the format.
    """
    figure, (left, right) = figure_of(2)
    for content, name, colour in zip(
        contents, names, [RUNS[k % len(RUNS)] for k in range(len(contents))], strict=True
    ):
        curve, timed = content["curve"], content["timed_points"]
        flops, accuracy = (
            100 * np.asarray(curve["flops_ratio"]),
            100 * np.asarray(curve["accuracy"]),
        )
        best = upper_envelope(flops, accuracy)
        left.plot(flops[best], accuracy[best], color=colour, linewidth=1.4, label=name)
        left.scatter(
            100 * content["flops_ratio"],
            100 * content["accuracy_dynamic"],
            marker="*",
            s=150,
            color=colour,
            edgecolor="white",
            zorder=4,
        )
        if timed is None:
            continue
        right.plot(
            timed["speedup"],
            100 * np.asarray(timed["accuracy"]),
            "o-",
            color=colour,
            markersize=4,
            linewidth=1.2,
            label=name,
        )
        right.scatter(
            content["speedup"],
            100 * content["accuracy_dynamic"],
            marker="*",
            s=150,
            color=colour,
            edgecolor="white",
            zorder=4,
        )
        right.scatter(1.0, 100 * content["accuracy_full"], marker="D", s=30, color=colour, zorder=4)
    left.set_xlabel("mean FLOPs per row (% of full depth)")
    left.set_xlim(left=0)
    right.set_xlabel("measured speed-up over full depth (times)")
    for ax in (left, right):
        _accuracy_axis(
            ax,
            [
                a
                for c in contents
                for a in (*c["curve"]["accuracy"], c["accuracy_full"], c["accuracy_dynamic"])
            ],
        )
    left.legend(fontsize=8, frameon=False, loc="lower right")
    figure.suptitle(
        "Accuracy against compute; stars are the operating points, diamonds full depth",
        color=INK,
        fontsize=12,
    )
    return save(figure, path)


def efficiency_by_depth(records: Sequence[dict[str, Any]], path: Path) -> Path:
    """Efficiency of every program of `dynexit bench` against mean depth.

    There is one panel for each network and batch.
    """
    keys = ("block", "width", "depth", "dtype", "batch", "distribution")
    panels = list(dict.fromkeys(tuple(r[k] for k in keys) for r in records))
    figure, axes = figure_of(len(panels), width=4.0)
    for ax, panel in zip(axes, panels, strict=True):
        shown = [r for r in records if tuple(r[k] for k in keys) == panel and "efficiency" in r]
        for color, name in zip(RUNS * 2, dict.fromkeys(r["program"] for r in shown), strict=False):
            line = sorted((100 * r["mean"], r["efficiency"]) for r in shown if r["program"] == name)
            ax.plot(*zip(*line, strict=True), "o-", color=color, label=name)
        ax.axhline(1.0, color=SOFT, linewidth=1)
        block, width, depth, dtype, batch, distribution = panel
        ax.set_title(
            f"{block} {width} x {depth}, {dtype}\nbatch {batch}, {distribution}", fontsize=9
        )
        ax.set_xlabel("mean depth, % of all blocks")
        ax.set_ylim(0, None)
    axes[0].set_ylabel("efficiency (ideal / measured)")
    axes[-1].legend(frameon=False, fontsize=8)
    return save(figure, Path(path))
