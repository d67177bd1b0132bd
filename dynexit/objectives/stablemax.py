"""Stablemax, a softmax with linear growth, which cannot saturate in half precision."""

import jax
import jax.numpy as jnp

from dynexit.core.labels import as_labels, places_counted
from dynexit.core.shapes import Array, Float
from dynexit.objectives.multi_exit import (
    Labels,
    Logits,
    Losses,
    check_logits,
    mean_of_counted,
    of_label,
    widened,
)


def log_stablemax(logits: Float[Array, "*b C"]) -> Float[Array, "*b C"]:
    """Log-probabilities of stablemax over the last axis.

    p_c = s(z_c) / sum_k s(z_k), with s(z) = z + 1 for z >= 0 and s(z) = 1 / (1 - z) for z < 0.

    Args:
      logits: z, `[..., C]`, floating point.

    Returns:
      ln p, `[..., C]`, float32, or float64 for float64 logits.

    Example:
      >>> # s = 2, 1, 1/2
      >>> [round(float(p), 4) for p in jnp.exp(log_stablemax(jnp.array([1.0, 0.0, -1.0])))]
      [0.5714, 0.2857, 0.1429]

    Source: Prieto et al. 2025, arXiv 2501.04697. Deviation from the code of HRM and TRM: they add
      1e-30 to 1 - z, which changes nothing in float32.
    """
    z = widened(logits)
    positive, negative = jnp.where(z >= 0, z, 0.0), jnp.where(z >= 0, 0.0, -z)
    log_s = jnp.log1p(positive) - jnp.log1p(negative)  # the gradient at z = 0 is 1
    return log_s - jax.nn.logsumexp(log_s, axis=-1, keepdims=True)


def stablemax_cross_entropy(
    logits: Logits, labels: Labels, ignore_label: int | None = None
) -> Losses:
    """Cross-entropy of every exit with stablemax instead of softmax.

    l_eb = -ln p_eb[y_b] with p of `log_stablemax`, averaged over the positions of a row that are
    not ignored.

    Args:
      logits: `[E, B, C]`, or `[E, B, ..., C]` for labels per position; floating point.
      labels: integers `[B]` or `[B, ...]` in 0..C-1; -1 (`dynexit.core.labels.IGNORED`) at ignored
        positions.
      ignore_label: a label that is ignored like -1, for example -100 of PyTorch.

    Returns:
      `[E, B]` in nats, float32, or float64 for float64 logits; 0 for a row whose positions are all
      ignored, NaN for a row with a label that is neither a class nor ignored.

    Raises:
      TypeError, ValueError: as `multi_exit_cross_entropy`.

    Example:
      >>> # ln 5/4
      >>> print(f"{stablemax_cross_entropy(jnp.array([[[3.0, 0.0]]]), jnp.array([0]))[0, 0]:.4f}")
      0.2231

    Source: Prieto et al. 2025, arXiv 2501.04697.
    """
    classes = check_logits(logits, as_labels(labels, ignore_label))
    counts = places_counted(classes)

    def one_exit(logits: Array) -> Array:
        return mean_of_counted(-of_label(log_stablemax(logits), classes), counts)

    return jax.vmap(one_exit)(logits)
