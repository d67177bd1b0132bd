"""Accuracy and cost of many operating points, by replay of stored outputs: the network is not run
again.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynexit.core.labels import as_labels, exact
from dynexit.core.types import Array, Criterion, Halted, PyTree


class Predictions(NamedTuple):
    """What every exit said about every example of one split.

    Attributes:
      split: "train", "calibration" or "test".
      outputs: leaves `[E, M, ...]`.
      labels: integers `[M]`, or `[M, ...]` with one for each place of a row; a row is right where
        all that count are.
      fingerprint: a digest of the examples; equal data have equal fingerprints.
    """

    split: str
    outputs: PyTree
    labels: Any
    fingerprint: str


class Curve(NamedTuple):
    """K operating points on M rows, on the host.

    Attributes:
      accuracy: float64 `[K]`, mean grade of the rows.
      cost: float64 `[K]`, mean FLOPs per row.
      mean_depth: float64 `[K]`, mean exits evaluated per row, in 1..E.
      exit_fraction: float64 `[K, E]`, achieved fraction of rows that left at each exit.
      accuracy_full: accuracy of the last exit.
      standard_error: float64 `[K]`, of accuracy - accuracy_full, from the paired differences of the
        rows.
      flips: float64 `[K]`, fraction of rows that the last exit gets right (or better) and the point
        wrong (or worse): negative flips, Yan et al. 2021, arXiv 2011.09161, accuracy lost before
        what other rows gain is set against it.
    """

    accuracy: np.ndarray
    cost: np.ndarray
    mean_depth: np.ndarray
    exit_fraction: np.ndarray
    accuracy_full: float
    standard_error: np.ndarray
    flips: np.ndarray


def curve(
    predictions: Predictions,
    points: PyTree,
    criterion: Callable[[PyTree], Criterion],
    predict: Callable[[PyTree], Array],
    costs: Any,
    replay: Callable[[Criterion, PyTree], Halted],
    score: Callable[[Any, Any], Any] = exact,
) -> Curve:
    """Every operating point on stored outputs, in one compiled program: K and the thresholds are
    data.

    Args:
      predictions: of any split; thresholds may be drawn on the test split, not chosen there.
      points: leaves `[K, ...]`.
      criterion: `criterion(point) -> Criterion`.
      predict: `predict(output) -> class`, integers in the shape of the labels.
      costs: cumulative FLOPs per row at every exit, `[E]`.
      replay: `dynexit.replay`. It, `criterion`, `predict` and `score` are static: hand in the same
        functions each time.
      score: as in `Method`.

    Returns:
      `Curve`. The standard error is sqrt(b + c - (b - c)^2 / M) / M, with b rows right only at full
      depth and c only at the point; 0 where no row changed, which says that M was too small to see
      a change and not that there is none.

    Raises:
      TypeError: labels that are not integers.
      ValueError: no points, or shapes that do not fit.

    Example: see `dynexit.calibration.choose`.
    """
    outputs, labels = predictions.outputs, np.asarray(predictions.labels)
    exits, costs = _check(outputs, labels, costs, points)
    swept = _sweep(
        criterion, predict, replay, score, points, outputs, jnp.asarray(as_labels(labels))
    )
    right, right_full, exit = map(np.asarray, swept)
    fractions = np.stack([np.bincount(e, minlength=exits) for e in exit]) / len(labels)
    change = right.astype(np.float64) - right_full
    return Curve(
        right.mean(axis=1),
        fractions @ costs,
        fractions @ np.arange(1, exits + 1),
        fractions,
        float(right_full.mean()),
        change.std(axis=1) / np.sqrt(len(labels)),
        (change < 0).mean(axis=1),
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _sweep(criterion, predict, replay, score, points, outputs, labels):
    def one(operating_point):
        halted = replay(criterion(operating_point), outputs)
        return score(predict(halted.output), labels), halted.exit

    right, exit = lax.map(one, points)  # one point at a time: the outputs are not copied K times
    return right, score(predict(jax.tree.map(lambda a: a[-1], outputs)), labels), exit


def _check(
    outputs: PyTree, labels: np.ndarray, costs: Any, points: PyTree
) -> tuple[int, np.ndarray]:
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"`predictions.labels` must be integers, got {labels.dtype}")
    if labels.ndim < 1 or labels.size == 0:
        raise ValueError(
            f"`predictions.labels` must have shape [M] or [M, ...] with at least one row, got {labels.shape}"
        )
    costs = np.asarray(costs, np.float64)
    if costs.ndim != 1 or not (np.diff(costs, prepend=0.0) > 0).all():
        raise ValueError(
            f"`costs` must be cumulative FLOPs of shape [E], above 0 and rising, got {costs.tolist()}"
        )
    for path, leaf in jax.tree_util.tree_flatten_with_path(outputs)[0]:
        if np.shape(leaf)[:2] != (len(costs), len(labels)):
            raise ValueError(
                f"`predictions.outputs`{jax.tree_util.keystr(path)} must have shape [E, M, ...] with E = {len(costs)} as `costs` "
                f"and M = {len(labels)} as the labels, got {np.shape(leaf)}"
            )
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(points)}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        raise ValueError(
            f"`points` must have leaves [K, ...] with one K of at least 1, got leading axes {sorted(sizes)}"
        )
    return len(costs), costs
