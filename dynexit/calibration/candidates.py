"""Candidate operating points, computed on the host.

They are a list of thresholds, thresholds solved for wanted fractions of a calibration split's
rows, or one threshold for all exits.

A row exits where `score > threshold`. A threshold at which a row of score s itself exits
therefore lies just below s, and the rows that exit are those of the literature's `score >= s`. It
lies 1e-6 below, relatively, and not one float: the same score computed by another program differs
in its last bits, and where many probabilities round to 1, many rows would not exit. Thresholds are
`[E-1]`: every pending row exits at the last exit.
"""

from collections.abc import Sequence
from typing import TypeAlias

import jax
import numpy as np

from dynexit.core.checks import positive_integer
from dynexit.core.shapes import AnyArray, Float, HostArray, Int, Num, PyTree
from dynexit.core.types import Candidates

Numbers: TypeAlias = Sequence[float] | Num[AnyArray, "K"]
Fractions: TypeAlias = Sequence[float] | Sequence[Sequence[float]] | Num[AnyArray, "... E"]
Confidence: TypeAlias = Num[AnyArray, "E M"]
Thresholds: TypeAlias = Float[HostArray, "... E-1"]

RATIOS = tuple(j / 20 for j in range(1, 40))  # MSDNet's released grid, 0.05..1.95
MARGIN = 1e-6


def levels(
    values: Numbers,
    full: float,
    name: str = "threshold",
    low: float = -np.inf,
    high: float = np.inf,
) -> Candidates:
    """Candidates `{name: []}` with one number for all exits, from a list.

    Args:
      values: `[K]`, each in low..high.
      full: the number at which no row exits early; calibration adds it to the candidates.
      name: of the operating point's entry.
      low, high: the range.

    Returns:
      `Candidates`.

    Raises:
      ValueError: another shape, or a value out of range.

    Example:
      >>> candidates = levels([0.5, 0.75], full=1.0)
      >>> candidates.points(None, {}, None)["threshold"].tolist(), candidates.full(4, {})
      ([0.5, 0.75], {'threshold': array(1., dtype=float32)})
    """
    found = np.asarray(values, np.float32)
    if found.ndim != 1 or not found.size or not ((found >= low) & (found <= high)).all():
        within = f"lie in {low:g}..{high:g}" if high < np.inf else f"be at least {low:g}"
        raise ValueError(f"`{name}s` must have shape [K] and {within}, got {found.tolist()}")
    return Candidates(
        lambda exits, fitted: {name: np.array(full, np.float32)},
        lambda records, fitted, costs: {name: found},
    )


def with_full_depth(points: PyTree, full: PyTree) -> PyTree:
    """The points, leaves `[K, ...]`, with `full` appended where it is not among them; on the host.

    Raises:
      ValueError: no points, leaves that differ in K or from `full`, or a NaN.

    Example:
      >>> with_full_depth({"t": np.array([0.5])}, {"t": np.array(1.0)})["t"].tolist()
      [0.5, 1.0]
    """
    points, full = jax.tree.map(np.asarray, (points, full))
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(points)}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        raise ValueError(
            "`points` must have leaves [K, ...] with one K of at least 1, got leading axes "
            f"{sorted(sizes)}"
        )
    if jax.tree.structure(points) != jax.tree.structure(full) or [
        a.shape[1:] for a in jax.tree.leaves(points)
    ] != [a.shape for a in jax.tree.leaves(full)]:
        describe = lambda tree: jax.tree.map(np.shape, tree)
        raise ValueError(
            f"`points` must have the structure of full depth with a leading axis [K], got "
            f"{describe(points)} and {describe(full)}"
        )
    for path, leaf in jax.tree_util.tree_flatten_with_path(points)[0]:
        if np.isnan(np.asarray(leaf, np.float64)).any():
            raise ValueError(f"`points`{jax.tree_util.keystr(path)} must not hold a NaN")
    same = np.ones(sizes.pop(), bool)
    for a, b in zip(jax.tree.leaves(points), jax.tree.leaves(full), strict=True):
        same &= (a == b).reshape(len(a), -1).all(axis=1)
    if same.any():
        return points
    return jax.tree.map(lambda a, b: np.concatenate([a, b[None].astype(a.dtype)]), points, full)


def geometric_fractions(ratios: Numbers, exits: int) -> Float[HostArray, "K E"]:
    """Wanted fractions of the rows at each exit, p_e proportional to r^e.

    Args:
      ratios: r, `[K]`, above 0; below 1 most rows exit early, above 1 most exit late.
      exits: E.

    Returns:
      float64 `[K, E]` on the host, rows sum to 1.

    Raises:
      ValueError: `ratios` is not one-dimensional or not above 0.

    Example:
      >>> geometric_fractions([0.5, 1.0], 2).round(3).tolist()
      [[0.667, 0.333], [0.5, 0.5]]

    Source: Huang et al. 2018, MSDNet, whose constant probability q of an exit is 1 - r; with r
      above 1 as in the released code.
    """
    ratios = np.asarray(ratios, np.float64)
    if ratios.ndim != 1 or not (np.isfinite(ratios) & (ratios > 0)).all():
        raise ValueError(
            f"`ratios` must be finite numbers above 0 of shape [K], got {ratios.tolist()}"
        )
    log_p = np.log(ratios)[:, None] * np.arange(positive_integer(exits, "exits"))
    p = np.exp(log_p - log_p.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def quotas(fractions: Fractions, rows: int) -> Int[HostArray, "..."]:
    """Wanted rows at each exit but the last, floor(M p_e), in float64.

    Args:
      fractions: p, `[..., E]`, at least 0, rows sum to 1.
      rows: M.

    Returns:
      int64 `[..., E-1]`. A product within 1e-9 of the next integer is rounded up: 100 x 0.29 is 29,
      not 28.

    Raises:
      ValueError: fractions that are negative or do not sum to 1.

    Example:
      >>> quotas([0.29, 0.71], 100).tolist()
      [29]
    """
    fractions = np.asarray(fractions, np.float64)
    if fractions.ndim == 0 or fractions.shape[-1] == 0:
        raise ValueError(
            "`fractions` must have shape [..., E] with at least one exit, got shape "
            f"{fractions.shape}"
        )
    if not (fractions >= 0).all() or not np.allclose(
        fractions.sum(axis=-1), 1.0, rtol=0, atol=1e-6
    ):
        raise ValueError(
            f"`fractions` must be at least 0 and sum to 1 over the exits, got {fractions.tolist()}"
        )
    return np.floor(rows * fractions[..., :-1] + 1e-9).astype(np.int64)


def msdnet_thresholds(confidence: Confidence, fractions: Fractions) -> Thresholds:
    """Thresholds at which wanted fractions of the rows exit at each exit.

    Exit by exit, with m = floor(M p_e) among the pending rows: T_e lies just below the m-th highest
    confidence, and the rows at or above that exit. A quota of 0 gives +inf, one above the number of
    pending rows gives -inf. Rows with ties exit together, so the achieved fractions may exceed the
    wanted ones: report the achieved.

    Args:
      confidence: `[E, M]`, higher is more certain; a row does not exit at a NaN.
      fractions: `[E]`, or `[K, E]` for K points at once.

    Returns:
      float32 `[E-1]` or `[K, E-1]`, for a criterion that exits where `score > threshold`.

    Raises:
      ValueError: shapes that do not fit, or fractions that are negative or do not sum to 1.

    Example:
      >>> confidence = np.array([[0.9, 0.8, 0.7, 0.6], [0.5, 0.5, 0.9, 0.8]])  # E=2, M=4
      >>> t = msdnet_thresholds(confidence, [0.5, 0.5])
      >>> (confidence[0] > t[0]).tolist()
      [True, True, False, False]

    Source: Huang et al. 2018, MSDNet, budgeted batch; released code, with `>` of a float just below
      for its `>=`.
    """
    confidence = _confidence(confidence)
    exits, rows = confidence.shape
    fractions = np.asarray(fractions, np.float64)
    if fractions.ndim not in (1, 2) or fractions.shape[-1] != exits:
        raise ValueError(
            f"`fractions` must have shape [E] or [K, E] with E = {exits}, got {fractions.shape}"
        )
    wanted = quotas(np.atleast_2d(fractions), rows)
    thresholds = np.stack([_solved(confidence[:-1], quota) for quota in wanted])
    return thresholds if fractions.ndim == 2 else thresholds[0]


def shared_thresholds(confidence: Confidence, count: int) -> Thresholds:
    """One threshold for all exits, just below evenly spaced quantiles of the confidences.

    The confidences of all early exits are pooled.

    Args:
      confidence: `[E, M]`, higher is more certain.
      count: K, at least 1.

    Returns:
      float32 `[K, E-1]`, rising; the last row is +inf, full depth. NaNs among the confidences are
      left out.

    Raises:
      TypeError, ValueError: `count` is no integer or below 1, `confidence` is not `[E, M]`.

    Example:
      >>> thresholds = shared_thresholds(np.array([[0.2, 0.4, 0.6], [0.9, 0.9, 0.9]]), 3)
      >>> [round(t, 3) for t in thresholds[:, 0].tolist()]
      [0.2, 0.4, inf]
    """
    confidence = _confidence(confidence)
    count = positive_integer(count, "count")
    pooled = confidence[:-1].ravel()
    pooled = pooled[~np.isnan(pooled)]
    found = np.full(count, np.inf, np.float32)
    if pooled.size and count > 1:
        found[:-1] = np.quantile(pooled, np.arange(count - 1) / (count - 1), method="lower")
    return np.tile(just_below(found)[:, None], (1, len(confidence) - 1))


def threshold_candidates(
    confidence: Confidence, ratios: Numbers = RATIOS, shared: int = 40
) -> Thresholds:
    """MSDNet's geometric family of thresholds, thresholds shared by all exits, and full depth.

    Args:
      confidence: `[E, M]`, higher is more certain.
      ratios: of the geometric family, `[R]`.
      shared: number of shared thresholds, at least 1; the last of them is +inf, full depth.

    Returns:
      float32 `[R + shared, E-1]`.

    Raises:
      TypeError, ValueError: as the functions above.

    Example:
      >>> threshold_candidates(np.ones((4, 10)), shared=5).shape
      (44, 3)
    """
    confidence = _confidence(confidence)
    solved = msdnet_thresholds(confidence, geometric_fractions(ratios, len(confidence)))
    return np.concatenate([solved, shared_thresholds(confidence, shared)])


def just_below(
    score: float | np.generic | Sequence[float] | Num[AnyArray, "*n"],
) -> Float[HostArray, "..."]:
    """A threshold a little below a score, float32; infinities are unchanged.

    The margin exceeds the difference in rounding of the same score in another program.

    Example:
      >>> just_below([1.0, np.inf]).tolist()
      [0.9999989867210388, inf]
    """
    score = np.asarray(score, np.float32)
    finite = np.isfinite(score)
    size = np.where(finite, score, np.float32(0))
    below = size - np.float32(MARGIN) * np.maximum(np.abs(size), np.float32(1e-30))
    return np.where(finite, below, score).astype(np.float32)


def _solved(confidence: HostArray, quotas: HostArray) -> HostArray:
    """Thresholds `[E-1]` from confidences `[E-1, M]` and the quotas `[E-1]` of one point."""
    pending = np.arange(confidence.shape[1])
    thresholds = np.full(len(confidence), np.inf, np.float32)
    for e, (scores, quota) in enumerate(zip(confidence, quotas, strict=True)):
        if quota == 0:
            continue
        remaining = scores[pending]
        known = remaining[~np.isnan(remaining)]
        if quota > len(known):
            thresholds[e] = -np.inf
        else:
            at = len(known) - int(quota)
            thresholds[e] = just_below(np.partition(known, at)[at])
        pending = pending[~(remaining > thresholds[e])]
    return thresholds


def _confidence(confidence: AnyArray) -> HostArray:
    if np.ndim(confidence) != 2 or 0 in np.shape(confidence):
        raise ValueError(
            f"`confidence` must have shape [E, M], none of them 0, got {np.shape(confidence)}"
        )
    return np.asarray(confidence, np.float32)
