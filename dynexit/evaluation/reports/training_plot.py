"""Curves of training: accuracy and loss of every exit, and halting statistics, over updates."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from dynexit.core.shapes import Float, Int
from dynexit.evaluation.reports.plots import DYNAMIC, FULL, INK, SOFT, figure_of, save

STEPS = ("mean_steps", "row_steps", "q_steps", "ponder", "tick_certain")  # in steps
RATIOS = ("halting_entropy", "q_at_limit", "at_limit")  # nats, or a fraction of the rows
STYLES = ("o-", "s--", "^:", "d-.")
MOST_NAMED = 8  # exits with a legend entry each

Records: TypeAlias = Sequence[Mapping[str, Any]]  # of `metrics.jsonl`
Curve: TypeAlias = tuple[Int[np.ndarray, "K"], Float[np.ndarray, "K"]]


def training_curves(records: Records, path: Path) -> Path:
    """Draws the curves that the records have.

    The panels are the accuracy of every exit on the calibration split; the training loss and every
    exit's loss on the calibration split; and, for methods that halt, halting statistics. A panel
    without a curve is left out. A dotted line marks the best checkpoint by mean accuracy.

    Args:
      records: the lines of `metrics.jsonl`, with a "step" each; at least one.
      path: the PNG to write.

    Returns:
      `path`.
    """
    drawings = [_accuracy] if exits_of(records, "accuracy") else []
    drawings.append(_loss)
    drawings += [_halting] if any(_halting_curves(records)) else []
    figure, axes = figure_of(len(drawings))
    best = best_step(records)
    for ax, draw in zip(axes, drawings, strict=True):
        draw(ax, records, figure)
        ax.set_xlabel("updates")
        if best is not None:
            ax.axvline(best, color=SOFT, linewidth=1, linestyle=":", zorder=1)
    return save(figure, path)


def curve(records: Records, name: str) -> Curve:
    """Steps and values of the records that have the metric `name`; null values are left out.

    Example:
      >>> curve([{"step": 1, "loss": 2.0}, {"step": 2}, {"step": 3, "loss": None}], "loss")
      (array([1]), array([2.]))
    """
    found = [(r["step"], r[name]) for r in records if r.get(name) is not None]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.asarray(steps, np.int64), np.asarray(values, np.float64)


def exits_of(records: Records, what: str) -> list[int]:
    """The exits for which the records have `eval_<what>_exit_<e>`, in order."""
    pattern = re.compile(rf"eval_{what}_exit_(\d+)")
    names = {name for record in records for name in record}
    return sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name)))


def best_step(records: Records) -> int | None:
    """The first step of the highest mean accuracy over the exits; None without an accuracy."""
    steps, values = curve(records, "eval_accuracy")
    return int(steps[np.argmax(values)]) if len(steps) else None


def _accuracy(ax: Any, records: Records, figure: Any) -> None:
    _exits(ax, records, "accuracy", figure, scale=100)
    ax.set_ylabel("calibration accuracy (%)")


def _loss(ax: Any, records: Records, figure: Any) -> None:
    ax.plot(*curve(records, "loss"), color=INK, linewidth=1, linestyle="--", label="training")
    _exits(ax, records, "loss", figure)
    ax.set_ylabel("loss: training, and calibration (nats)")
    ax.legend(frameon=False, fontsize=8)


def _exits(ax: Any, records: Records, what: str, figure: Any, scale: float = 1) -> None:
    """One curve for each exit, from light to dark; a colour bar in place of a long legend."""
    from matplotlib import cm, colors

    exits = exits_of(records, what)
    if not exits:
        return
    tone = colors.Normalize(-0.4 * max(exits[-1], 1), max(exits[-1], 1))
    colour = cm.ScalarMappable(tone, "viridis_r")
    shades = colour.to_rgba(np.asarray(exits, np.float64))
    for e, shade in zip(exits, shades, strict=True):
        steps, values = curve(records, f"eval_{what}_exit_{e}")
        last = e == exits[-1]
        ax.plot(
            steps,
            scale * values,
            "o-",
            color=shade,
            markersize=3,
            linewidth=1.8 if last else 1.1,
            label=f"exit {e}" if len(exits) <= MOST_NAMED or last else None,
        )
    if len(exits) > MOST_NAMED:
        figure.colorbar(colour, ax=ax, label="exit", boundaries=np.arange(-0.5, exits[-1] + 1))
    ax.legend(frameon=False, fontsize=8)


def _halting_curves(records: Records) -> tuple[list[str], list[str]]:
    """Names of the halting statistics: those in steps, and the others.

    They are those of the evaluation where it has them.
    """
    names = {name for record in records for name in record}
    choose = lambda known: [
        f"eval_{name}" if f"eval_{name}" in names else name
        for name in known
        if {name, f"eval_{name}"} & names
    ]
    return choose(STEPS), choose(RATIOS)


def _halting(ax: Any, records: Records, figure: Any) -> None:
    """Steps on the left axis, entropy and fractions on the right."""
    steps, ratios = _halting_curves(records)
    right = ax.twinx() if steps and ratios else ax
    right.spines["top"].set_visible(False)
    lines = []
    for axis, names, colour in ((ax, steps, FULL), (right, ratios, DYNAMIC)):
        for name, style in zip(names, itertools.cycle(STYLES), strict=False):
            label = name.removeprefix("eval_").replace("_", " ")
            lines += axis.plot(
                *curve(records, name), style, color=colour, markersize=3, label=label
            )
    if steps:
        ax.set_ylabel("steps")
    if ratios:
        right.set_ylabel("entropy (nats), fraction of rows")
    ax.legend(handles=lines, frameon=False, fontsize=8)
