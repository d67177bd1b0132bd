"""PonderNet's answer in expectation: the class probabilities of all steps, each as likely as
halting there.
"""

import jax

from dynexit.core.types import Array
from dynexit.objectives.multi_exit import log_softmax
from dynexit.objectives.ponder import log_halting


def halting_mixture(logits: Array, halt_logits: Array) -> Array:
    """Log-probabilities of the classes with the halting step summed out, ln sum_n p_n softmax(z_n).

    No compute is saved: all N steps run. It is what sampled exits (`criteria.halting_sampled`)
      answer on average.

    Args:
      logits: z, `[N, B, C]` or `[N, B, ..., C]`.
      halt_logits: `[N, B]`; p is that of `log_halting`, whose last step takes what is left.

    Returns:
      `[B, ..., C]`, float32 or better; exp of it sums to 1 over the classes.

    Raises:
      ValueError: shapes that do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.log(jnp.array([[[0.9, 0.1]], [[0.1, 0.9]]]))  # [N=2, B=1, C=2]
      >>> mixed = halting_mixture(logits, jax.scipy.special.logit(jnp.array([[0.25], [0.5]])))
      >>> [round(p, 4) for p in jnp.exp(mixed)[0].tolist()]  # 0.25 x 0.9 + 0.75 x 0.1
      [0.3, 0.7]

    Source: Balagansky and Gavrilov 2022, the rule "expectation"; the released PALBERT gives the
      last step 1 - p_N, so that its
    weights do not sum to 1.
    """
    if logits.ndim < 3 or logits.shape[:2] != halt_logits.shape:
        came = f"{logits.shape} and {halt_logits.shape}"
        raise ValueError(
            f"`logits` must have shape [N, B, ..., C] for `halt_logits` [N, B], got {came}"
        )
    log_p = log_halting(halt_logits)
    return jax.nn.logsumexp(
        log_softmax(logits) + log_p.reshape(log_p.shape + (1,) * (logits.ndim - 2)), axis=0
    )
