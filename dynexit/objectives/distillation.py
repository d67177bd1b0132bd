"""Self-distillation: the last exit as the teacher of the earlier exits."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from dynexit.core.shapes import AnyArray, Array, Float, Num
from dynexit.objectives.multi_exit import log_softmax, multi_exit_cross_entropy


def self_distillation(
    logits: Float[Array, "E B C"], temperature: float = 1.0
) -> Float[Array, "E B"]:
    """KL divergence from the last exit to every exit, without a gradient to the last exit.

    d_eb = T^2 KL(softmax(z_{E-1} / T) || softmax(z_e / T)), with the teacher z_{E-1} held constant.

    Args:
      logits: z, `[E, B, C]`.
      temperature: T, above 0. The factor T^2 keeps the scale of the gradients independent of T, as
        in Hinton et al.

    Returns:
      `[E, B]` in nats, at least 0 up to rounding; the last row is 0, and so is its gradient.

    Raises:
      ValueError: `temperature` is not above 0, or `logits` does not have shape `[E, B, C]`.

    Example:
      >>> logits = jnp.array([[[0.0, 0.0]], [[2.0, 0.0]]])  # E=2, B=1, C=2
      >>> [round(d, 4) for d in self_distillation(logits)[:, 0].tolist()]
      [0.3278, 0.0]

    Source: Liu et al. 2020, FastBERT, with T = 1 and only the early exits trained; Zhang et al.
      2019.
    """
    if not temperature > 0:
        raise ValueError(f"`temperature` must be above 0, got {temperature}")
    if logits.ndim != 3 or 0 in logits.shape or logits.shape[-1] < 2:
        raise ValueError(
            f"`logits` must have shape [E, B, C] with at least 2 classes, got {logits.shape}"
        )
    log_p = log_softmax(logits / temperature)
    teacher = jax.lax.stop_gradient(log_p[-1])

    def one_exit(student: Array) -> Array:  # [B, C]; what the teacher excludes (-inf) adds 0
        excluded = jnp.isneginf(teacher)
        gap = jnp.where(excluded, 0.0, teacher) - jnp.where(excluded, 0.0, student)
        return (jnp.exp(teacher) * gap).sum(axis=-1)

    return temperature**2 * jax.vmap(one_exit)(log_p)


def distilled_cross_entropy(
    logits: Float[Array, "E B C"],
    labels: Sequence[int] | Num[AnyArray, "B"],
    alpha: float,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
) -> Float[Array, "E B"]:
    """Cross-entropy of every exit, mixed with distillation from the last exit.

    l_eb = (1 - alpha) CE_eb + alpha d_eb for e < E-1, and l_{E-1,b} = CE_{E-1,b}, with d of
    `self_distillation`.

    Args:
      logits: `[E, B, C]`.
      labels: integers `[B]`.
      alpha: weight of the distillation, in 0..1; 1 is FastBERT.
      temperature: T, above 0.
      label_smoothing: in 0..1.

    Returns:
      `[E, B]` in nats.

    Raises:
      TypeError, ValueError: as `multi_exit_cross_entropy` and `self_distillation`; `alpha` outside
        0..1.

    Example:
      >>> logits, labels = jnp.array([[[0.0, 0.0]], [[2.0, 0.0]]]), jnp.array([0])
      >>> [round(l, 4) for l in distilled_cross_entropy(logits, labels, alpha=1.0)[:, 0].tolist()]
      [0.3278, 0.1269]

    Source: Liu et al. 2020, FastBERT, for alpha = 1; Zhang et al. 2019 for the mixture.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must lie in 0..1, got {alpha}")
    losses = multi_exit_cross_entropy(logits, labels, label_smoothing)
    mixed = (1 - alpha) * losses + alpha * self_distillation(logits, temperature)
    return mixed.at[-1].set(losses[-1])
