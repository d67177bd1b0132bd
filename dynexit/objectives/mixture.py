"""PonderNet's expected prediction: class probabilities averaged over the halting step."""

import jax

from dynexit.core.shapes import Array, Float
from dynexit.objectives.multi_exit import log_softmax
from dynexit.objectives.ponder import log_halting


def halting_mixture(
    logits: Float[Array, "N B *places C"], halt_logits: Float[Array, "N B"]
) -> Float[Array, "B *places C"]:
    """Log-probabilities of the classes, marginalised over the halting step.

    ln sum_n p_n softmax(z_n). All N steps run, so this saves no compute. It is the expectation of
    what sampled exits (`criteria.halting_sampled`) return.

    Args:
      logits: z, `[N, B, C]` or `[N, B, ..., C]`.
      halt_logits: `[N, B]`; p is that of `log_halting`, whose last step takes the remaining
        probability.

    Returns:
      `[B, ..., C]`, float32 or float64; its exponential sums to 1 over the classes.

    Raises:
      ValueError: the shapes of `logits` and `halt_logits` do not match.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.log(jnp.array([[[0.9, 0.1]], [[0.1, 0.9]]]))  # [N=2, B=1, C=2]
      >>> mixed = halting_mixture(logits, jax.scipy.special.logit(jnp.array([[0.25], [0.5]])))
      >>> [round(p, 4) for p in jnp.exp(mixed)[0].tolist()]  # 0.25 x 0.9 + 0.75 x 0.1
      [0.3, 0.7]

    Source: Balagansky and Gavrilov 2022, the rule "expectation". Deviation from the released
      PALBERT: it gives the last step the weight 1 - p_N, so its weights do not sum to 1.
    """
    if logits.ndim < 3 or logits.shape[:2] != halt_logits.shape:
        raise ValueError(
            "`logits` must have shape [N, B, ..., C] for `halt_logits` [N, B], "
            f"got {logits.shape} and {halt_logits.shape}"
        )
    log_p = log_halting(halt_logits)
    return jax.nn.logsumexp(
        log_softmax(logits) + log_p.reshape(log_p.shape + (1,) * (logits.ndim - 2)), axis=0
    )
