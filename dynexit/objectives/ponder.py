"""PonderNet: halting as a latent variable. Everything is a sum of logarithms, for the products
underflow.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dynexit.core.checks import positive_integer
from dynexit.core.types import Array
from dynexit.objectives.multi_exit import widened


class PonderLoss(NamedTuple):
    """The loss and what to watch while it falls.

    Attributes:
      loss: `[B]`, expected loss + beta x KL.
      expected_loss: `[B]`, sum_n p_n l_n.
      kl: `[B]`, nats.
      probabilities: `[N, B]`, p; sums to 1 over the steps.
      mean_steps: `[B]`, sum_n n p_n, in 1..N.
      entropy: `[B]`, of p, nats; 0 where halting has collapsed to one step.
    """

    loss: Array
    expected_loss: Array
    kl: Array
    probabilities: Array
    mean_steps: Array
    entropy: Array


def log_halting(halt_logits: Array) -> Array:
    """Log-probabilities of halting at each step, p_n = lambda_n prod_{i<n} (1 - lambda_i); the last
    step takes what is left.

    Args:
      halt_logits: `[N, B]`, finite; lambda = sigmoid. The last step's is not used, for there lambda
        is 1.

    Returns:
      `[N, B]`, float32 or better; exp of it sums to 1 over the steps.

    Raises:
      ValueError: not `[N, B]`.

    Example:
      >>> logits = jax.scipy.special.logit(jnp.array([[0.2], [0.5], [0.5], [0.9]]))
      >>> [round(p, 4) for p in jnp.exp(log_halting(logits))[:, 0].tolist()]
      [0.2, 0.4, 0.2, 0.2]

    Source: Banino et al. 2021, PonderNet; the released PALBERT does not force the last step.
    """
    if halt_logits.ndim != 2 or 0 in halt_logits.shape:
        raise ValueError(
            f"`halt_logits` must have shape [N, B], none of them 0, got {halt_logits.shape}"
        )
    z = widened(halt_logits)
    log_survival = jnp.cumsum(jax.nn.log_sigmoid(-z[:-1]), axis=0)  # [N-1, B]
    before = jnp.concatenate([jnp.zeros_like(z[:1]), log_survival])
    log_lambda = jnp.concatenate([jax.nn.log_sigmoid(z[:-1]), jnp.zeros_like(z[:1])])
    return before + log_lambda


def geometric_last(steps: int, rate: float) -> Array:
    """Log of a geometric prior whose remaining mass lies on the last step: g_n = r (1 - r)^(n-1),
    g_N = (1 - r)^(N-1).

    Args:
      steps: N.
      rate: r, in 0..1 exclusive; about 1 / r steps are expected where N is large.

    Returns:
      float32 `[N]`; exp of it sums to 1.

    Raises:
      TypeError, ValueError: `steps` is no integer or below 1; `rate` not between 0 and 1.

    Example:
      >>> jnp.exp(geometric_last(4, 0.5)).tolist()
      [0.5, 0.25, 0.125, 0.125]

    Source: the released PALBERT. With r = 0.1 and N = 12 its mean is 7.18, that of
      `geometric_renormalised` 5.28.
    """
    log_g = _log_geometric(steps, rate)
    log_g[-1] = (steps - 1) * np.log1p(-rate)
    return jnp.asarray(log_g, jnp.float32)


def geometric_renormalised(steps: int, rate: float) -> Array:
    """Log of a geometric prior cut at N and divided by its mass: g_n = r (1 - r)^(n-1) / (1 - (1 -
    r)^N).

    Args:
      steps: N.
      rate: r, in 0..1 exclusive.

    Returns:
      float32 `[N]`; exp of it sums to 1.

    Raises:
      TypeError, ValueError: as `geometric_last`.

    Example:
      >>> [round(g, 4) for g in jnp.exp(geometric_renormalised(4, 0.5)).tolist()]
      [0.5333, 0.2667, 0.1333, 0.0667]
    """
    log_g = _log_geometric(steps, rate)
    return jnp.asarray(log_g - np.log(-np.expm1(steps * np.log1p(-rate))), jnp.float32)


def kl_posterior_prior(log_p: Array, log_prior: Array) -> Array:
    """KL(p || g) = sum_n p_n (ln p_n - ln g_n): the paper's direction; steps may fall out of use.

    Args:
      log_p: `[N, B]`, of `log_halting`.
      log_prior: `[N]`.

    Returns:
      `[B]` in nats.

    Raises:
      ValueError: numbers of steps that differ.

    Example:
      >>> p = jnp.log(jnp.array([[0.2], [0.4], [0.2], [0.2]]))
      >>> print(f"{kl_posterior_prior(p, geometric_last(4, 0.5))[0]:.5f}")
      0.19274

    Source: Banino et al. 2021, PonderNet.
    """
    log_prior = _column(log_p, log_prior)
    return (jnp.exp(log_p) * (log_p - log_prior)).sum(axis=0)


def kl_prior_posterior(log_p: Array, log_prior: Array) -> Array:
    """KL(g || p) = sum_n g_n (ln g_n - ln p_n): what public implementations compute; every step
    keeps some probability.

    Args:
      log_p: `[N, B]`, of `log_halting`.
      log_prior: `[N]`.

    Returns:
      `[B]` in nats.

    Raises:
      ValueError: numbers of steps that differ.

    Example:
      >>> p = jnp.log(jnp.array([[0.2], [0.4], [0.2], [0.2]]))
      >>> print(f"{kl_prior_posterior(p, geometric_last(4, 0.5))[0]:.5f}")
      0.22314

    Source: the released PALBERT and the parity reproduction of PonderNet in mildlyoverfitted.
    """
    log_prior = _column(log_p, log_prior)
    return (jnp.exp(log_prior) * (log_prior - log_p)).sum(axis=0)


def halting_entropy(log_p: Array) -> Array:
    """Entropy of the halting distribution, -sum_n p_n ln p_n.

    Args:
      log_p: `[N, B]`.

    Returns:
      `[B]` in nats, 0..ln N; 0 means that halting has collapsed to one step.

    Example:
      >>> print(f"{halting_entropy(jnp.log(jnp.full((4, 1), 0.25)))[0]:.4f}")
      1.3863
    """
    return -(jnp.exp(log_p) * log_p).sum(axis=0)


def ponder_loss(
    losses: Array,
    halt_logits: Array,
    log_prior: Array,
    beta: float,
    divergence: Callable[[Array, Array], Array] = kl_prior_posterior,
) -> PonderLoss:
    """Expected loss under the halting distribution, held near a prior: L_b = sum_n p_nb l_nb + beta
    D(p_b, g).

    Args:
      losses: `[N, B]`, each step's loss.
      halt_logits: `[N, B]`.
      log_prior: `[N]`, of `geometric_last` or `geometric_renormalised`.
      beta: at least 0; 0.01 from scratch, 0.5 for fine-tuning in PALBERT.
      divergence: `divergence(log_p [N, B], log_prior [N]) -> [B]`: `kl_prior_posterior` or
        `kl_posterior_prior`.

    Returns:
      `PonderLoss`, nothing averaged over the batch.

    Raises:
      ValueError: shapes that do not fit, `beta` negative, a prior (where it is not traced) that
        does not sum to 1.

    Example:
      >>> losses = jnp.array([[1.0], [0.5], [0.0]])
      >>> out = ponder_loss(losses, jnp.zeros((3, 1)), geometric_last(3, 0.5), beta=0.01)
      >>> out.loss.tolist(), out.mean_steps.tolist()  # p = 1/2, 1/4, 1/4, the prior itself
      ([0.625], [1.75])

    Source: Banino et al. 2021, PonderNet. Direction and tail of the released code are the defaults
      of
    `dynexit.methods.halting.pondernet`.
    """
    if losses.shape != halt_logits.shape:
        raise ValueError(
            f"`losses` must have the shape of `halt_logits` [N, B], got {losses.shape} and {halt_logits.shape}"
        )
    if not beta >= 0:
        raise ValueError(f"`beta` must be at least 0, got {beta}")
    if (
        not isinstance(log_prior, Tracer)
        and not abs(total := float(np.exp(np.asarray(log_prior, np.float64)).sum()) - 1) < 1e-3
    ):
        raise ValueError(
            f"`log_prior` must be the logarithm of probabilities that sum to 1, got a sum of {total + 1:.4g}"
        )
    log_p = log_halting(halt_logits)
    p = jnp.exp(log_p)
    expected = (p * losses.astype(p.dtype)).sum(axis=0)
    kl = divergence(log_p, log_prior)
    steps = jnp.arange(1, len(p) + 1, dtype=p.dtype)[:, None]
    return PonderLoss(
        expected + beta * kl, expected, kl, p, (steps * p).sum(axis=0), halting_entropy(log_p)
    )


def _log_geometric(steps: int, rate: float) -> np.ndarray:
    steps = positive_integer(steps, "steps")
    if not 0 < rate < 1:
        raise ValueError(f"`rate` must lie between 0 and 1, both excluded, got {rate}")
    return np.log(rate) + np.arange(steps) * np.log1p(-rate)


def _column(log_p: Array, log_prior: Array) -> Array:
    if log_p.ndim != 2 or log_prior.shape != log_p.shape[:1]:
        raise ValueError(
            f"`log_prior` must have shape [N] for `log_p` [N, B], got {log_prior.shape} and {log_p.shape}"
        )
    return log_prior.astype(log_p.dtype)[:, None]
