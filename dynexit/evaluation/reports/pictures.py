"""Test inputs that exited early and late, drawn. matplotlib is loaded when the first is drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynexit.core.labels import places_counted
from dynexit.core.shapes import Int, Shaped
from dynexit.evaluation.reports.plots import DYNAMIC, INK, Content, figure_of, save


def examples_by_depth(
    inputs: Any,
    labels: Shaped[np.ndarray, "M ..."],
    classes: Shaped[np.ndarray, "M ..."],
    exit: Int[np.ndarray, "M"],
    content: Content,
    path: Path,
    columns: int = 8,
) -> Path | None:
    """Test inputs with an early and a late exit, as pictures or rows of colour.

    Wrong answers are red.

    Args:
      inputs: `[M, H, W]`, `[M, H, W, 1 or 3]` or `[M, n]`; only the rows that are drawn are read.
      labels, classes: `[M]` or `[M, ...]`, the truth and the answer.
      exit: `[M]`, the exit taken.
      content: what `report.report` returned.
      path: the PNG to write.
      columns: examples per exit.

    Returns:
      The path, or None where inputs are neither pictures nor short sequences.
    """
    if isinstance(inputs, np.ndarray) and inputs.ndim == 3 and inputs.shape[-1] == 1:
        inputs = inputs[..., 0]  # a sequence of single numbers
    if not _drawable(inputs):
        return None
    taken = [k for k in range(len(content["depth_of_exit"])) if (exit == k).any()]
    if len(taken) > 6:
        taken = [taken[round(i)] for i in np.linspace(0, len(taken) - 1, 6)]
    columns = 6 if np.ndim(inputs) == 2 else columns
    rows = {k: _some(np.flatnonzero(exit == k), columns) for k in taken}
    drawn = np.concatenate(list(rows.values()))
    pictures = dict(zip(drawn.tolist(), _as_pictures(np.asarray(inputs[drawn])), strict=True))
    from matplotlib import pyplot

    pyplot.close(figure_of()[0])  # sets the backend
    sequence = np.ndim(inputs) == 2
    size = (
        (1.6 * columns + 1.4, 0.45 * len(taken) + 0.6)
        if sequence
        else (0.95 * columns + 1.4, 1.15 * len(taken) + 0.6)
    )
    figure, axes = pyplot.subplots(
        len(taken), columns, figsize=size, squeeze=False, layout="constrained"
    )
    for ax in axes.ravel():
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
    look = (
        {"aspect": "auto", "cmap": "coolwarm", "vmin": 0, "vmax": 1}
        if sequence
        else {"cmap": "gray_r"}
    )
    for row, k in zip(axes, taken, strict=True):
        row[0].set_ylabel(
            f"depth {content['depth_of_exit'][k]}\n{(exit == k).mean():.0%} of rows",
            rotation=0,
            ha="right",
            va="center",
            fontsize=9,
            color=INK,
        )
        for ax, m in zip(row, rows[k].tolist(), strict=False):
            ax.imshow(pictures[m], interpolation="nearest", **look)
            title, right = _answered(classes[m], labels[m], content["classes"])
            ax.set_title(title, fontsize=7, color=INK if right else DYNAMIC, pad=2)
    figure.suptitle(
        f"{content['name']}: easy inputs exit early, hard ones late (wrong answers in red)",
        color=INK,
        fontsize=11,
    )
    return save(figure, path)


def _some(rows: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the rows, drawn at random, in their order."""
    return np.sort(np.random.default_rng(0).permutation(rows)[:count])


def _answered(answer: Any, label: Any, names: Sequence[str]) -> tuple[str, bool]:
    """Title of an example, and whether its answer is right; many places are only counted."""
    counted = places_counted(label)
    wrong = int(((answer != label) & counted).sum())
    if label.ndim or not names:
        return (f"{wrong} of {int(counted.sum())} wrong" if wrong else "right"), not wrong
    if not counted:
        return f"{names[int(answer)]}, no label", True
    said, true = names[int(answer)], names[int(label)]
    return (f"{said}, is {true}" if wrong else said), not wrong


def _drawable(inputs: Any) -> bool:
    """Whether inputs are images or short sequences."""
    if not isinstance(inputs, np.ndarray) or inputs.dtype.kind not in "biuf":
        return False
    image = inputs.ndim == 3 or (inputs.ndim == 4 and inputs.shape[-1] in (1, 3))
    return image or (inputs.ndim == 2 and inputs.shape[1] <= 256)


def _as_pictures(inputs: np.ndarray) -> np.ndarray:
    """`[m, H, W]` or `[m, H, W, 3]` in 0..1."""
    x = inputs.astype(np.float32)
    if x.ndim == 4 and x.shape[-1] == 1:
        x = x[..., 0]
    if x.ndim == 2:
        x = x[:, None, :]
    low, high = x.min(), x.max()
    return (x - low) / max(high - low, 1e-6)
