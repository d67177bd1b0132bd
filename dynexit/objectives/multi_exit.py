"""Cross-entropy of every exit and its weighted sum over the exits, unreduced over the batch."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from dynexit.core.labels import IGNORED, as_labels, places_counted, rows_counted
from dynexit.core.shapes import AnyArray, Array, Bool, Float, Int, Num, Shaped

Logits: TypeAlias = Float[Array, "E B *places C"]
Labels: TypeAlias = Sequence[Any] | Num[AnyArray, "B *places"]
Losses: TypeAlias = Float[Array, "E B"]
Weights: TypeAlias = Sequence[float] | Num[AnyArray, "E"]


def multi_exit_cross_entropy(
    logits: Logits, labels: Labels, label_smoothing: float = 0.0, ignore_label: int | None = None
) -> Losses:
    """Cross-entropy of every exit with label smoothing.

    l_eb = -(1 - a) ln p_eb[y_b] - (a / C) sum_c ln p_eb[c]. If a row has a label per position, its
    loss is the mean over the positions that are not ignored.

    Args:
      logits: `[E, B, C]`, or `[E, B, ..., C]` for labels per position; floating point.
      labels: integers `[B]` or `[B, ...]` in 0..C-1; -1 (`dynexit.core.labels.IGNORED`) at ignored
        positions.
      label_smoothing: a, in 0..1.
      ignore_label: a label that is ignored like -1, for example -100 of PyTorch.

    Returns:
      `[E, B]` in nats, 0 for a row whose positions are all ignored, NaN for a row with a label that
      is neither a class nor ignored; float64 for float64 logits, float32 otherwise. Half precision
      is computed in float32.

    Raises:
      TypeError: `logits` are not floating point, or `labels` are not integers.
      ValueError: the shapes do not match, or `label_smoothing` lies outside 0..1.

    Example:
      >>> logits = jnp.zeros((3, 2, 4))  # E=3, B=2, C=4
      >>> multi_exit_cross_entropy(logits, jnp.array([1, 3])).shape
      (3, 2)

    Source: Szegedy et al. 2016 for label smoothing, uniform over all C classes.
    """
    classes = check_logits(logits, as_labels(labels, ignore_label))
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"`label_smoothing` must lie in 0..1, got {label_smoothing}")

    counts = places_counted(classes)

    def one_exit(logits: Array) -> Array:  # [B, ..., C]
        z = widened(logits)  # ln p is not stored: of C entries one is wanted
        most = jax.lax.stop_gradient(z.max(axis=-1))
        total = jnp.log(jnp.exp(z - most[..., None]).sum(axis=-1))
        loss = total - (of_label(z, classes) - most)
        if label_smoothing:
            smooth = total - (z - most[..., None]).mean(axis=-1)
            loss = (1 - label_smoothing) * loss + label_smoothing * smooth
        return mean_of_counted(loss, counts)

    return jax.vmap(one_exit)(logits)


def of_label(values: Float[Array, "*b C"], labels: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """The entry of each label, `[..., C]` to `[...]`.

    The entry of class 0 for `IGNORED`, NaN for another label that is no class.
    """
    classes = values.shape[-1]
    index = jnp.where(labels == IGNORED, 0, jnp.where(labels < 0, classes, labels))
    return jnp.take_along_axis(values, index[..., None], axis=-1, mode="fill")[..., 0]


def mean_of_counted(
    values: Float[Array, "b *places"], counts: Bool[Array, "b *places"]
) -> Float[Array, "b"]:
    """Mean of each row over the positions that are not ignored.

    Args:
      values: floating point `[b, ...]`.
      counts: bool `[b, ...]`, false at ignored positions.

    Returns:
      `[b]`, in the type of `values`; 0 for a row whose positions are all ignored.
    """
    axes = tuple(range(1, values.ndim))
    total = jnp.where(counts, values, 0.0).sum(axis=axes)
    return total / jnp.maximum(counts.sum(axis=axes), 1).astype(values.dtype)


def weighted(losses: Losses, weights: Weights) -> Float[Array, "B"]:
    """Weighted sum over the exits, sum_e w_e l_eb.

    Args:
      losses: l, `[E, B]`.
      weights: w, `[E]`; see `dynexit.objectives.weights`. They are not normalised here.

    Returns:
      `[B]`, in the type of `losses`.

    Raises:
      ValueError: the shapes do not match.

    Example:
      >>> weighted(jnp.array([[1.0, 2.0], [3.0, 4.0]]), [0.5, 1.0]).tolist()
      [3.5, 5.0]
    """
    w = jnp.asarray(weights, losses.dtype)
    if losses.ndim != 2 or w.shape != losses.shape[:1]:
        raise ValueError(
            f"`weights` must have shape [E] for `losses` [E, B], got {w.shape} and {losses.shape}"
        )
    return (w[:, None] * losses).sum(axis=0)


def deep_supervision(
    logits: Logits, labels: Labels, weights: Weights, label_smoothing: float = 0.0
) -> Float[Array, "B"]:
    """Weighted sum of the cross-entropies of all exits, sum_e w_e CE_eb.

    Args:
      logits: `[E, B, C]`, or `[E, B, ..., C]` for labels per position.
      labels: integers `[B]` or `[B, ...]`, as in `multi_exit_cross_entropy`.
      weights: w, `[E]`.
      label_smoothing: in 0..1.

    Returns:
      `[B]` in nats.

    Raises:
      TypeError, ValueError: as `multi_exit_cross_entropy` and `weighted`.

    Example:
      >>> loss = deep_supervision(jnp.zeros((2, 1, 4)), jnp.array([0]), [0.5, 0.5])
      >>> print(f"{loss[0]:.4f}")  # ln 4
      1.3863

    Source: Lee et al. 2015, Deeply-Supervised Nets, with a softmax instead of the squared hinge and
      without the margin gamma; the plain form used by BranchyNet, PABEE and MSDNet.
    """
    return weighted(multi_exit_cross_entropy(logits, labels, label_smoothing), weights)


def widened(a: Shaped[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The array in float32; float64 is unchanged."""
    return a if a.dtype == jnp.float64 else a.astype(jnp.float32)


def log_softmax(logits: Float[Array, "*b C"]) -> Float[Array, "*b C"]:
    """ln softmax over the last axis, in float32, or in float64 for float64 logits."""
    return jax.nn.log_softmax(widened(logits))


def mean_over_rows(values: Shaped[Array, "B"], labels: Num[AnyArray, "B ..."]) -> Float[Array, ""]:
    """Mean over the rows that have a label, `[]` in float32 or better; 0 if none has.

    Args:
      values: `[B]`.
      labels: `[B, ...]`.

    Example:
      >>> float(mean_over_rows(jnp.array([1.0, 3.0, 9.0]), jnp.array([0, 1, -1])))
      2.0
    """
    values, counts = widened(values), rows_counted(labels)
    return jnp.where(counts, values, 0).sum() / jnp.maximum(counts.sum(dtype=values.dtype), 1)


def check_logits(logits: Logits, labels: Labels) -> Int[Array, "B *places"]:
    """Checks that logits are floating point `[E, B, ..., C]` and labels integers `[B, ...]`.

    Returns:
      The labels as an int32 array.

    Raises:
      TypeError: `logits` are not floating point, or `labels` are not integers.
      ValueError: a wrong shape.
    """
    classes = jnp.asarray(as_labels(labels))
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"`logits` must be floating point, got {logits.dtype}")
    if logits.ndim < 3 or 0 in logits.shape:
        raise ValueError(
            "`logits` must have shape [E, B, C] or [E, B, ..., C] without an axis of size 0, "
            f"got {logits.shape}"
        )
    if classes.shape != logits.shape[1:-1]:
        wanted = ", ".join(map(str, logits.shape[1:-1]))
        raise ValueError(
            f"`labels` must have shape [{wanted}] for `logits` {logits.shape}, got {classes.shape}"
        )
    if logits.shape[-1] < 2:
        raise ValueError(
            f"`logits` must have at least 2 classes on the last axis, got shape {logits.shape}: "
            "the softmax of one logit is always 1; for a head of one logit z pass the logits (0, z)"
        )
    return classes
