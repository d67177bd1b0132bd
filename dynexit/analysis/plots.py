"""Pictures of a run, and of several runs side by side. matplotlib is loaded when the first is drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynexit.analysis.curves import upper_envelope
from dynexit.core.labels import IGNORED

INK, SOFT, DYNAMIC, FULL = "#22313f", "#9fb3c8", "#d1495b", "#00798c"
RUNS = ("#00798c", "#d1495b", "#edae49", "#66a182", "#2e4057", "#8d6a9f")


def _figure(columns: int = 1, width: float = 5.6, height: float = 4.0):
    """A figure without a window and its row of axes."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(width * columns, height), squeeze=False, layout="constrained")
    for ax in axes[0]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(colors=INK)
        ax.grid(True, color="#e8edf2", linewidth=0.8)
        ax.set_axisbelow(True)
    return figure, axes[0]


def _save(figure, path: Path) -> Path:
    from matplotlib import pyplot

    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def _accuracy_axis(ax, accuracies: Sequence[float]) -> None:
    """Percent, from a little below what matters to a little above the best."""
    values = np.asarray(accuracies, np.float64)
    top, low = values.max(), np.percentile(values, 5)
    margin = max(0.004, 0.12 * (top - low))
    ax.set_ylim(max(0.0, low - margin) * 100, min(1.005, top + margin) * 100)
    ax.set_ylabel("test accuracy (%)")


def accuracy_against_compute(content: dict, path: Path) -> Path:
    """Accuracy against FLOPs for every candidate point, and against measured time for those that were timed.

    Args:
      content: what `report.report` returned.
      path: the PNG to write.
    """
    figure, (left, right) = _figure(2)
    percent = lambda values: 100 * np.asarray(values, np.float64)
    curve, timed = content["curve"], content["timed_points"]
    per_exit = np.asarray(content["accuracy_per_exit"])
    exit_flops = np.asarray(content["flops_until_exit"]) / content["flops_full"]

    best = upper_envelope(np.asarray(curve["flops_ratio"]), np.asarray(curve["accuracy"]))
    left.scatter(percent(curve["flops_ratio"]), percent(curve["accuracy"]), s=10, color=SOFT, label="all thresholds", zorder=2)
    left.plot(percent(curve["flops_ratio"])[best], percent(curve["accuracy"])[best], color=SOFT, linewidth=1.2, zorder=2)
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
    left.axhline(100 * content["accuracy_full"], color=INK, linewidth=0.8, linestyle=":", label="full depth")
    left.set_xlabel("mean FLOPs per row (% of full depth)")
    left.set_xlim(left=0)

    micro = lambda values: 1e6 * np.asarray(values, np.float64)
    right.plot(
        micro(timed["seconds_per_row"]),
        percent(timed["accuracy"]),
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
        chosen[1],
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
        label="full depth (quickest program)",
    )
    right.set_xlabel(f"measured time per row (us), batch {content['batch_size']}")
    right.set_xlim(left=0)
    for ax in (left, right):
        _accuracy_axis(ax, [*curve["accuracy"], content["accuracy_full"], content["accuracy_dynamic"]])
        ax.legend(fontsize=8, frameon=False, loc="lower right")
    figure.suptitle(f"{content['name']}: accuracy against compute", color=INK, fontsize=12)
    return _save(figure, path)


def depth_histogram(content: dict, path: Path) -> Path:
    """How many rows of the test split left at each exit, and how accurate those rows were.

    Args:
      content: what `report.report` returned.
      path: the PNG to write.
    """
    figure, (ax,) = _figure(1, width=6.4)
    share = 100 * np.asarray(content["rows_per_exit"]) / content["examples"]
    depths = np.asarray(content["depth_of_exit"])
    gap = np.diff(depths, prepend=0).min()
    bars = ax.bar(depths, share, width=0.8 * gap, color=FULL, zorder=2)
    ax.bar_label(bars, [f"{s:.0f}" if s >= 0.5 else "" for s in share], fontsize=8, color=INK, padding=2)
    ax.axvline(
        content["mean_depth"],
        color=DYNAMIC,
        linewidth=1.5,
        label=f"mean {content['mean_depth']:.2f} of {content['depth']} blocks",
    )
    ax.set_xticks(depths)
    ax.set_xlabel("depth at which the row left (blocks)")
    ax.set_ylabel("rows of the test split (%)")
    ax.grid(False, axis="x")
    ax.legend(frameon=False, fontsize=9)
    ax.set_title(f"{content['name']}: depth taken", color=INK, fontsize=12)
    return _save(figure, path)


def examples_by_depth(
    inputs: Any, labels: np.ndarray, classes: np.ndarray, exit: np.ndarray, content: dict, path: Path, columns: int = 8
) -> Path | None:
    """Test inputs that left early and late: images as pictures, short sequences as rows of colour; wrong answers in red.

    Args:
      inputs: `[M, H, W]`, `[M, H, W, 1 or 3]` or `[M, n]`.
      labels, classes: `[M]` or `[M, ...]`, the truth and the answer.
      exit: `[M]`, the exit taken.
      content: what `report.report` returned.
      path: the PNG to write.
      columns: examples per exit.

    Returns:
      The path, or None where inputs are neither pictures nor short sequences.
    """
    pictures = _as_pictures(inputs)
    if pictures is None:
        return None
    taken = [k for k in range(len(content["depth_of_exit"])) if (exit == k).any()]
    if len(taken) > 6:
        taken = [taken[round(i)] for i in np.linspace(0, len(taken) - 1, 6)]
    from matplotlib import pyplot

    pyplot.close(_figure()[0])  # sets the backend
    sequence = pictures.shape[1] == 1
    columns = 6 if sequence else columns
    size = (1.6 * columns + 1.4, 0.45 * len(taken) + 0.6) if sequence else (0.95 * columns + 1.4, 1.15 * len(taken) + 0.6)
    figure, axes = pyplot.subplots(len(taken), columns, figsize=size, squeeze=False, layout="constrained")
    for ax in axes.ravel():
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
    look = {"aspect": "auto", "cmap": "coolwarm", "vmin": 0, "vmax": 1} if sequence else {"cmap": "gray_r"}
    for row, k in zip(axes, taken, strict=True):
        chosen = np.flatnonzero(exit == k)
        chosen = np.sort(np.random.default_rng(0).permutation(chosen)[:columns])
        row[0].set_ylabel(
            f"depth {content['depth_of_exit'][k]}\n{(exit == k).mean():.0%} of rows",
            rotation=0,
            ha="right",
            va="center",
            fontsize=9,
            color=INK,
        )
        for ax, m in zip(row, chosen, strict=False):
            ax.imshow(pictures[m], interpolation="nearest", **look)
            title, right = _answered(classes[m], labels[m], content["classes"])
            ax.set_title(title, fontsize=7, color=INK if right else DYNAMIC, pad=2)
    figure.suptitle(f"{content['name']}: easy inputs leave early, hard ones late (wrong answers in red)", color=INK, fontsize=11)
    return _save(figure, path)


def _answered(answer: np.ndarray, label: np.ndarray, names: Sequence[str]) -> tuple[str, bool]:
    """What stands above an example, and whether its answer is right; many places are counted and not named."""
    wrong = int(((answer != label) & (label != IGNORED)).sum())
    if label.ndim:
        return (f"{wrong} of {int((label != IGNORED).sum())} wrong" if wrong else "right"), not wrong
    said, true = names[int(answer)], names[int(label)]
    return (f"{said}, is {true}" if wrong else said), not wrong


def _as_pictures(inputs: Any) -> np.ndarray | None:
    """`[M, H, W]` or `[M, H, W, 3]` in 0..1, or None."""
    if not isinstance(inputs, np.ndarray):
        return None
    x = inputs.astype(np.float32)
    if x.ndim in (3, 4) and x.shape[-1] == 1:
        x = x[..., 0]
    if x.ndim == 2 and x.shape[1] <= 256:
        x = x[:, None, :]
    if not (x.ndim == 3 or (x.ndim == 4 and x.shape[-1] == 3)):
        return None
    low, high = x.min(), x.max()
    return (x - low) / max(high - low, 1e-6)


def compare_runs(contents: Sequence[dict], names: Sequence[str], path: Path) -> Path:
    """Several runs in one figure: accuracy against the fraction of FLOPs, and against the measured speed-up.

    Args:
      contents: one `report.json` a run.
      names: what the legend calls them.
      path: the file to write; its ending gives the format.
    """
    figure, (left, right) = _figure(2)
    for content, name, colour in zip(contents, names, [RUNS[k % len(RUNS)] for k in range(len(contents))], strict=True):
        curve, timed = content["curve"], content["timed_points"]
        flops, accuracy = 100 * np.asarray(curve["flops_ratio"]), 100 * np.asarray(curve["accuracy"])
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
        _accuracy_axis(ax, [a for c in contents for a in (*c["curve"]["accuracy"], c["accuracy_full"], c["accuracy_dynamic"])])
    left.legend(fontsize=8, frameon=False, loc="lower right")
    figure.suptitle("Accuracy against compute; stars are the operating points, diamonds full depth", color=INK, fontsize=12)
    return _save(figure, path)


def efficiency_by_depth(records: Sequence[dict], path: Path) -> Path:
    """Efficiency of every program against mean depth, one panel for each network and batch of `dynexit bench`."""
    keys = ("block", "width", "depth", "dtype", "batch", "distribution")
    panels = list(dict.fromkeys(tuple(r[k] for k in keys) for r in records))
    figure, axes = _figure(len(panels), width=4.0)
    for ax, panel in zip(axes, panels, strict=True):
        shown = [r for r in records if tuple(r[k] for k in keys) == panel and "efficiency" in r]
        for color, name in zip(RUNS * 2, dict.fromkeys(r["program"] for r in shown), strict=False):
            line = sorted((100 * r["mean"], r["efficiency"]) for r in shown if r["program"] == name)
            ax.plot(*zip(*line, strict=True), "o-", color=color, label=name)
        ax.axhline(1.0, color=SOFT, linewidth=1)
        block, width, depth, dtype, batch, distribution = panel
        ax.set_title(f"{block} {width} x {depth}, {dtype}\nbatch {batch}, {distribution}", fontsize=9)
        ax.set_xlabel("mean depth, % of all blocks")
        ax.set_ylim(0, None)
    axes[0].set_ylabel("efficiency (ideal / measured)")
    axes[-1].legend(frameon=False, fontsize=8)
    return _save(figure, Path(path))
