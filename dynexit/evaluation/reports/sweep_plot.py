"""The figure of a sweep: accuracy against FLOPs, with the spread over seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynexit.evaluation.reports.plots import INK, RUNS, figure_of, save

MARKERS = ("o", "s", "^", "D", "v", "P")


def accuracy_of_groups(
    groups: Sequence[Mapping[str, Any]], labels: Sequence[str], title: str, path: Path
) -> Path:
    """Draws every group at its operating point, filled, and at full depth, hollow.

    Error bars are one sample standard deviation over the runs of the group.

    Args:
      groups: figures of `report.json` as `{"mean": m, "sd": s}`, with `flops_full`, `flops_ratio`,
        `accuracy_dynamic` and `accuracy_full`.
      labels: the entries of the legend.
      title: of the figure.
      path: the file to write; its ending gives the format.

    Returns:
      `path`.
    """
    figure, (ax,) = figure_of(1, width=6.4, height=4.4)
    for k, (group, label) in enumerate(zip(groups, labels, strict=True)):
        style = {
            "color": RUNS[k % len(RUNS)],
            "marker": MARKERS[k // len(RUNS) % len(MARKERS)],
            "capsize": 3,
            "markersize": 6,
            "linestyle": "none",
        }
        full = group["flops_full"]["mean"] / 1e6
        share, spread = group["flops_ratio"]["mean"], group["flops_ratio"]["sd"] or 0.0
        at = group["accuracy_dynamic"]
        ax.errorbar(
            full * share,
            100 * at["mean"],
            xerr=full * spread,
            yerr=100 * (at["sd"] or 0.0),
            label=label,
            **style,
        )
        at = group["accuracy_full"]
        ax.errorbar(full, 100 * at["mean"], yerr=100 * (at["sd"] or 0.0), mfc="white", **style)
        means = [100 * group[name]["mean"] for name in ("accuracy_dynamic", "accuracy_full")]
        ax.plot([full * share, full], means, color=style["color"], linewidth=0.8, alpha=0.5)
    ax.set_xlim(left=0)
    ax.set_xlabel("mean FLOPs per row (millions); hollow: full depth")
    ax.set_ylabel("test accuracy (%)")
    ax.legend(fontsize=8, frameon=False)
    ax.set_title(f"{title}: accuracy against FLOPs", color=INK, fontsize=12)
    return save(figure, path)
