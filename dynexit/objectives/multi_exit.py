"""Cross-entropy at every exit, and its weighted sum: deep supervision. Nothing here takes the mean
over the batch.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dynexit.core.labels import IGNORED
from dynexit.core.types import Array


def multi_exit_cross_entropy(logits: Array, labels: Array, label_smoothing: float = 0.0) -> Array:
    """Cross-entropy of every exit, l_eb = -(1 - a) ln p_eb[y_b] - (a / C) sum_c ln p_eb[c].

    Where a row has a label for each of its places, its loss is the mean over the places that count.

    Args:
      logits: `[E, B, C]`, or `[E, B, ..., C]` for labels by place; floating point.
      labels: integers `[B]` or `[B, ...]` in 0..C-1; -1 (`dynexit.core.labels.IGNORED`) at places
        that do not count.
      label_smoothing: a, in 0..1.

    Returns:
      `[E, B]` in nats, 0 for a row without a place that counts; float32, or float64 for float64
      logits. Half precision is computed in float32.

    Raises:
      TypeError: logits that are not floating point, labels that are not integers.
      ValueError: shapes that do not fit, or `label_smoothing` outside 0..1.

    Example:
      >>> logits = jnp.zeros((3, 2, 4))  # E=3, B=2, C=4
      >>> multi_exit_cross_entropy(logits, jnp.array([1, 3])).shape
      (3, 2)

    Source: Szegedy et al. 2016 for the smoothing, uniform over all C classes.
    """
    check_logits(logits, labels)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"`label_smoothing` must lie in 0..1, got {label_smoothing}")

    counts = labels != IGNORED

    def one_exit(logits):  # [B, ..., C]
        log_p = log_softmax(logits)
        loss = -jnp.take_along_axis(log_p, jnp.where(counts, labels, 0)[..., None], axis=-1)[..., 0]
        if label_smoothing:
            loss = (1 - label_smoothing) * loss - label_smoothing * log_p.mean(axis=-1)
        return mean_of_counted(loss, counts)

    return jax.vmap(one_exit)(logits)


def mean_of_counted(values: Array, counts: Array) -> Array:
    """Mean over a row's places that count, `[b, ...]` to `[b]`; 0 where there are none."""
    axes = tuple(range(1, values.ndim))
    return jnp.where(counts, values, 0.0).sum(axis=axes) / jnp.maximum(
        counts.sum(axis=axes), 1
    ).astype(values.dtype)


def weighted(losses: Array, weights: Any) -> Array:
    """Weighted sum over the exits, sum_e w_e l_eb.

    Args:
      losses: `[E, B]`.
      weights: `[E]`; see `dynexit.objectives.weights`. Not normalised here.

    Returns:
      `[B]`, in the type of `losses`.

    Raises:
      ValueError: shapes that do not fit.

    Example:
      >>> weighted(jnp.array([[1.0, 2.0], [3.0, 4.0]]), [0.5, 1.0]).tolist()
      [3.5, 5.0]
    """
    weights = jnp.asarray(weights, losses.dtype)
    if losses.ndim != 2 or weights.shape != losses.shape[:1]:
        raise ValueError(
            f"`weights` must have shape [E] for `losses` [E, B], got {weights.shape} and {losses.shape}"
        )
    return (weights[:, None] * losses).sum(axis=0)


def deep_supervision(
    logits: Array, labels: Array, weights: Any, label_smoothing: float = 0.0
) -> Array:
    """Every exit is trained on the labels: the weighted sum of their cross-entropies.

    Args:
      logits: `[E, B, C]`.
      labels: integers `[B]`.
      weights: `[E]`.
      label_smoothing: in 0..1.

    Returns:
      `[B]` in nats.

    Example:
      >>> loss = deep_supervision(jnp.zeros((2, 1, 4)), jnp.array([0]), [0.5, 0.5])
      >>> print(f"{loss[0]:.4f}")  # ln 4
      1.3863

    Source: Lee et al. 2015, Deeply-Supervised Nets, with a softmax instead of the squared hinge and
      without the margin gamma; the
    plain form used by BranchyNet, PABEE and MSDNet.
    """
    return weighted(multi_exit_cross_entropy(logits, labels, label_smoothing), weights)


def widened(a: Array) -> Array:
    """float32, or float64 as it is."""
    return a if a.dtype == jnp.float64 else a.astype(jnp.float32)


def log_softmax(logits: Array) -> Array:
    """ln softmax over the last axis, in float32 or better."""
    return jax.nn.log_softmax(widened(logits))


def check_logits(logits: Array, labels: Array) -> None:
    """Refuses logits that are not `[E, B, ..., C]` and labels that are not integers `[B, ...]`.

    Raises:
      TypeError, ValueError: naming what came.
    """
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"`logits` must be floating point, got {logits.dtype}")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"`labels` must be integers, got {labels.dtype}")
    if logits.ndim < 3 or 0 in logits.shape:
        raise ValueError(
            f"`logits` must have shape [E, B, C] or [E, B, ..., C], none of them 0, got {logits.shape}"
        )
    if labels.shape != logits.shape[1:-1]:
        wanted = ", ".join(map(str, logits.shape[1:-1]))
        raise ValueError(
            f"`labels` must have shape [{wanted}] for `logits` {logits.shape}, got {labels.shape}"
        )
