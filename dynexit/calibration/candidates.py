"""Candidate thresholds from the confidences of a calibration split: solved for wanted fractions, or
one for all exits.

A row leaves where `score > threshold`. A threshold that must release a score s itself therefore
lies just below s, and the rows released are those of the literature's `score >= s`. It lies 1e-6
below, relatively, and not one float: the same score computed by another program differs in its last
bits, and where many probabilities round to 1 that would hold back a crowd. Thresholds are `[E-1]`:
the last exit takes everyone.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynexit.core.checks import positive_integer
from dynexit.core.types import Array

RATIOS = tuple(j / 20 for j in range(1, 40))  # MSDNet's released grid, 0.05..1.95
MARGIN = 1e-6


def geometric_fractions(ratios: Any, exits: int) -> np.ndarray:
    """Fractions of the rows that shall leave at each exit, p_e proportional to r^e.

    Args:
      ratios: r, `[K]`, above 0; below 1 most rows leave early, above 1 most leave late.
      exits: E.

    Returns:
      float64 `[K, E]` on the host, rows sum to 1.

    Raises:
      ValueError: `ratios` is not one-dimensional or not above 0.

    Example:
      >>> geometric_fractions([0.5, 1.0], 2).round(3).tolist()
      [[0.667, 0.333], [0.5, 0.5]]

    Source: Huang et al. 2018, MSDNet, whose constant probability q of leaving is 1 - r; with r
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


def quotas(fractions: Any, rows: int) -> np.ndarray:
    """Rows that shall leave at each exit but the last, floor(M p_e), in float64.

    Args:
      fractions: p, `[..., E]`, at least 0, rows sum to 1.
      rows: M.

    Returns:
      int64 `[..., E-1]`. A product within 1e-9 of the next integer counts as it: 100 x 0.29 is 29,
      and not 28.

    Raises:
      ValueError: fractions that are negative or do not sum to 1.

    Example:
      >>> quotas([0.29, 0.71], 100).tolist()
      [29]
    """
    fractions = np.asarray(fractions, np.float64)
    if fractions.ndim == 0 or fractions.shape[-1] == 0:
        raise ValueError(
            f"`fractions` must have shape [..., E] with at least one exit, got shape {fractions.shape}"
        )
    if not (fractions >= 0).all() or not np.allclose(
        fractions.sum(axis=-1), 1.0, rtol=0, atol=1e-6
    ):
        raise ValueError(
            f"`fractions` must be at least 0 and sum to 1 over the exits, got {fractions.tolist()}"
        )
    return np.floor(rows * fractions[..., :-1] + 1e-9).astype(np.int64)


def msdnet_thresholds(confidence: Array, fractions: Any) -> Array:
    """Thresholds with which wanted fractions of the rows leave at each exit.

    Exit by exit, with m = floor(M p_e) among the rows that remain: T_e lies just below the m-th
    highest confidence, and the rows at or above that leave. A quota of 0 gives +inf, one above the
    number of rows left gives -inf. Ties leave together, so the
    achieved fractions may exceed the wanted ones: report the achieved.

    Args:
      confidence: `[E, M]`, higher is surer; a NaN never leaves.
      fractions: `[E]`, or `[K, E]` for K points at once.

    Returns:
      float32 `[E-1]` or `[K, E-1]`, for a criterion that leaves where `score > threshold`.

    Raises:
      ValueError: shapes that do not fit, or fractions that are negative or do not sum to 1.

    Example:
      >>> confidence = jnp.array([[0.9, 0.8, 0.7, 0.6], [0.5, 0.5, 0.9, 0.8]])  # E=2, M=4
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
    wanted = jnp.asarray(quotas(np.atleast_2d(fractions), rows), jnp.int32)
    thresholds = _solve(confidence[:-1], wanted)
    return thresholds if fractions.ndim == 2 else thresholds[0]


def shared_thresholds(confidence: Array, count: int) -> Array:
    """One threshold for all exits, just below evenly spaced quantiles of the confidences of all
    early exits together.

    Args:
      confidence: `[E, M]`, higher is surer.
      count: K, at least 1.

    Returns:
      float32 `[K, E-1]`, rising; the last row is +inf, full depth. NaNs among the confidences are
      left out.

    Raises:
      TypeError, ValueError: `count` is no integer or below 1, `confidence` is not `[E, M]`.

    Example:
      >>> levels = shared_thresholds(jnp.array([[0.2, 0.4, 0.6], [0.9, 0.9, 0.9]]), 3)
      >>> [round(t, 3) for t in levels[:, 0].tolist()]
      [0.2, 0.4, inf]
    """
    confidence = _confidence(confidence)
    count = positive_integer(count, "count")
    pooled = np.asarray(confidence[:-1]).ravel()
    pooled = pooled[~np.isnan(pooled)]
    levels = np.full(count, np.inf, np.float32)
    if pooled.size:
        levels[:-1] = np.quantile(pooled, np.arange(count - 1) / max(count - 1, 1), method="lower")
    return jnp.tile(_just_below(jnp.asarray(levels))[:, None], (1, len(confidence) - 1))


def threshold_candidates(confidence: Array, ratios: Any = RATIOS, shared: int = 40) -> Array:
    """Operating points worth comparing: MSDNet's geometric family, thresholds shared by all exits,
    and full depth.

    Args:
      confidence: `[E, M]`, higher is surer.
      ratios: of the geometric family, `[R]`.
      shared: number of shared thresholds, at least 1; the last of them is +inf, full depth.

    Returns:
      float32 `[R + shared, E-1]`.

    Raises:
      TypeError, ValueError: as the functions above.

    Example:
      >>> threshold_candidates(jnp.ones((4, 10)), shared=5).shape
      (44, 3)
    """
    confidence = _confidence(confidence)
    solved = msdnet_thresholds(confidence, geometric_fractions(ratios, len(confidence)))
    return jnp.concatenate([solved, shared_thresholds(confidence, shared)])


@jax.jit
def _solve(confidence: Array, wanted: Array) -> Array:
    """Thresholds `[K, E-1]` from confidences `[E-1, M]` and quotas int32 `[K, E-1]`."""
    rows = confidence.shape[1]

    def one_exit(remaining, x):
        scores, quota = x
        alive = jnp.where(remaining & ~jnp.isnan(scores), scores, -jnp.inf)
        lowest = jnp.sort(alive)[jnp.clip(rows - quota, 0, rows - 1)]
        threshold = jnp.where(quota > 0, _just_below(lowest), jnp.inf)
        return remaining & ~(scores > threshold), threshold

    def one_point(quota):
        return lax.scan(one_exit, jnp.ones(rows, bool), (confidence, quota))[1]

    return lax.map(one_point, wanted)


def _just_below(score: Array) -> Array:
    """A little less than a score, by more than another program's rounding of the same score."""
    return jnp.where(jnp.isinf(score), score, score - MARGIN * jnp.maximum(jnp.abs(score), 1e-30))


def _confidence(confidence: Array) -> Array:
    if jnp.ndim(confidence) != 2 or 0 in jnp.shape(confidence):
        raise ValueError(
            f"`confidence` must have shape [E, M], none of them 0, got {jnp.shape(confidence)}"
        )
    return jnp.asarray(confidence, jnp.float32)
