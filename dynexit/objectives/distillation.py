"""The last exit as the teacher of the earlier ones."""

import jax
import jax.numpy as jnp

from dynexit.core.types import Array
from dynexit.objectives.multi_exit import check_logits, log_softmax, multi_exit_cross_entropy


def self_distillation(logits: Array, temperature: float = 1.0) -> Array:
    """How far each exit is from the last, d_eb = T^2 KL(softmax(z_{E-1} / T) || softmax(z_e / T));
    no gradient to the teacher.

    Args:
      logits: `[E, B, C]`.
      temperature: T, above 0. The factor T^2 keeps the gradients' size, as Hinton et al. have it.

    Returns:
      `[E, B]` in nats, at least 0 up to rounding; the last row is 0, and so is its gradient.

    Raises:
      ValueError: `temperature` is not above 0, or `logits` is not `[E, B, C]`.

    Example:
      >>> logits = jnp.array([[[0.0, 0.0]], [[2.0, 0.0]]])  # E=2, B=1, C=2
      >>> [round(d, 4) for d in self_distillation(logits)[:, 0].tolist()]
      [0.3278, 0.0]

    Source: Liu et al. 2020, FastBERT (T = 1, the student exits alone trained); Zhang et al. 2019.
    """
    if not temperature > 0:
        raise ValueError(f"`temperature` must be above 0, got {temperature}")
    if logits.ndim != 3 or 0 in logits.shape:
        raise ValueError(f"`logits` must have shape [E, B, C], none of them 0, got {logits.shape}")
    log_p = log_softmax(logits / temperature)
    teacher = jax.lax.stop_gradient(log_p[-1])

    def one_exit(student):  # [B, C]; a class the teacher excludes (-inf) counts 0
        excluded = jnp.isneginf(teacher)
        gap = jnp.where(excluded, 0.0, teacher) - jnp.where(excluded, 0.0, student)
        return (jnp.exp(teacher) * gap).sum(axis=-1)

    return temperature**2 * jax.vmap(one_exit)(log_p)


def distilled_cross_entropy(
    logits: Array,
    labels: Array,
    alpha: float,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
) -> Array:
    """Early exits learn from labels and from the last exit, which learns from labels alone.

    l_eb = (1 - alpha) CE_eb + alpha d_eb for e < E-1, and CE for the last, with d of
    `self_distillation`.

    Args:
      logits: `[E, B, C]`.
      labels: integers `[B]`.
      alpha: share of the teacher, in 0..1; 1 is FastBERT.
      temperature: T, above 0.
      label_smoothing: in 0..1.

    Returns:
      `[E, B]` in nats.

    Raises:
      TypeError, ValueError: as `multi_exit_cross_entropy`; `alpha` outside 0..1.

    Example:
      >>> logits = jnp.array([[[0.0, 0.0]], [[2.0, 0.0]]])
      >>> [round(l, 4) for l in distilled_cross_entropy(logits, jnp.array([0]), 1.0)[:, 0].tolist()]
      [0.3278, 0.1269]
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must lie in 0..1, got {alpha}")
    check_logits(logits, labels)
    losses = multi_exit_cross_entropy(logits, labels, label_smoothing)
    mixed = (1 - alpha) * losses + alpha * self_distillation(logits, temperature)
    return mixed.at[-1].set(losses[-1])
