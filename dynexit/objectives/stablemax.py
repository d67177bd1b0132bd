"""Cross-entropy over stablemax, a softmax whose exponential grows as a line: it cannot saturate in
half precision.
"""

import jax
import jax.numpy as jnp

from dynexit.core.labels import IGNORED
from dynexit.core.types import Array
from dynexit.objectives.multi_exit import check_logits, mean_of_counted, widened


def log_stablemax(logits: Array) -> Array:
    """ln p over the last axis, p_c = s(z_c) / sum_k s(z_k) with s(z) = z + 1 for z >= 0 and 1 / (1
    - z) below.

    Args:
      logits: `[..., C]`.

    Returns:
      `[..., C]`, float32 or better.

    Example:
      >>> # s = 2, 1, 1/2
      >>> [round(float(p), 4) for p in jnp.exp(log_stablemax(jnp.array([1.0, 0.0, -1.0])))]
      [0.5714, 0.2857, 0.1429]

    Source: Prieto et al. 2025, arXiv 2501.04697; HRM's and TRM's code adds 1e-30 to 1 - z, which
      changes nothing in float32.
    """
    z = widened(logits)
    log_s = jnp.log1p(jnp.where(z >= 0, z, 0.0)) - jnp.log1p(
        jnp.where(z >= 0, 0.0, -z)
    )  # its slope at 0 is 1
    return log_s - jax.nn.logsumexp(log_s, axis=-1, keepdims=True)


def stablemax_cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy of every exit over stablemax, l_eb = -ln p_eb[y_b], the mean over the places
    that count.

    Args:
      logits: `[E, B, C]`, or `[E, B, ..., C]` for labels by place; floating point.
      labels: integers `[B]` or `[B, ...]` in 0..C-1; -1 (`dynexit.core.labels.IGNORED`) at places
        that do not count.

    Returns:
      `[E, B]` in nats, float32 or better; 0 for a row without a place that counts.

    Raises:
      TypeError, ValueError: as `multi_exit_cross_entropy`.

    Example:
      >>> # ln 5/4
      >>> print(f"{stablemax_cross_entropy(jnp.array([[[3.0, 0.0]]]), jnp.array([0]))[0, 0]:.4f}")
      0.2231
    """
    check_logits(logits, labels)
    counts = labels != IGNORED
    index = jnp.where(counts, labels, 0)[..., None]

    def one_exit(logits: Array) -> Array:
        return mean_of_counted(
            -jnp.take_along_axis(log_stablemax(logits), index, axis=-1)[..., 0], counts
        )

    return jax.vmap(one_exit)(logits)
