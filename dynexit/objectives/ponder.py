"""PonderNet: halting as a latent variable, computed in logarithms because products underflow."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dynexit.core.checks import positive_integer
from dynexit.core.shapes import Array, Float, HostArray
from dynexit.objectives.multi_exit import widened

PerStep: TypeAlias = Float[Array, "N B"]
Prior: TypeAlias = Float[Array, "N"]
PerRow: TypeAlias = Float[Array, "B"]


class PonderLoss(NamedTuple):
    """The loss of PonderNet and its diagnostics.

    Attributes:
      loss: `[B]`, expected loss + beta x KL.
      expected_loss: `[B]`, sum_n p_n l_n.
      kl: `[B]`, nats.
      probabilities: `[N, B]`, p; sums to 1 over the steps.
      mean_steps: `[B]`, sum_n n p_n, in 1..N.
      entropy: `[B]`, of p, nats; 0 if halting has collapsed to one step.
    """

    loss: PerRow
    expected_loss: PerRow
    kl: PerRow
    probabilities: PerStep
    mean_steps: PerRow
    entropy: PerRow


def log_halting(halt_logits: PerStep) -> PerStep:
    """Log-probabilities of halting at each step.

    p_n = lambda_n prod_{i<n} (1 - lambda_i), with lambda = sigmoid(halt_logits) and lambda_N = 1:
    the last step takes the remaining probability.

    Args:
      halt_logits: `[N, B]`, finite. The logit of the last step is not used.

    Returns:
      ln p, `[N, B]`, float32 or float64; its exponential sums to 1 over the steps.

    Raises:
      ValueError: `halt_logits` does not have shape `[N, B]`.

    Example:
      >>> logits = jax.scipy.special.logit(jnp.array([[0.2], [0.5], [0.5], [0.9]]))
      >>> [round(p, 4) for p in jnp.exp(log_halting(logits))[:, 0].tolist()]
      [0.2, 0.4, 0.2, 0.2]

    Source: Banino et al. 2021, PonderNet; the released PALBERT does not force the last step.
    """
    if halt_logits.ndim != 2 or 0 in halt_logits.shape:
        raise ValueError(
            "`halt_logits` must have shape [N, B] without an axis of size 0, "
            f"got {halt_logits.shape}"
        )
    z = widened(halt_logits)
    log_survival = jnp.cumsum(jax.nn.log_sigmoid(-z[:-1]), axis=0)  # [N-1, B]
    before = jnp.concatenate([jnp.zeros_like(z[:1]), log_survival])
    log_lambda = jnp.concatenate([jax.nn.log_sigmoid(z[:-1]), jnp.zeros_like(z[:1])])
    return before + log_lambda


def geometric_last(steps: int, rate: float) -> Float[Array, "N"]:
    """Log of a geometric prior whose remaining mass lies on the last step.

    g_n = r (1 - r)^(n-1) for n < N, and g_N = (1 - r)^(N-1).

    Args:
      steps: N, at least 1.
      rate: r, between 0 and 1, both excluded; the expected number of steps is about 1 / r for
        large N.

    Returns:
      ln g, float32 `[N]`; its exponential sums to 1.

    Raises:
      TypeError: `steps` is not an integer.
      ValueError: `steps` is below 1, or `rate` is not between 0 and 1.

    Example:
      >>> jnp.exp(geometric_last(4, 0.5)).tolist()
      [0.5, 0.25, 0.125, 0.125]

    Source: the released PALBERT. With r = 0.1 and N = 12 the mean is 7.18 steps; that of
      `geometric_renormalised` is 5.28.
    """
    log_g = _log_geometric(steps, rate)
    log_g[-1] = (steps - 1) * np.log1p(-rate)
    return jnp.asarray(log_g, jnp.float32)


def geometric_renormalised(steps: int, rate: float) -> Float[Array, "N"]:
    """Log of a geometric prior truncated at N and renormalised.

    g_n = r (1 - r)^(n-1) / (1 - (1 - r)^N).

    Args:
      steps: N, at least 1.
      rate: r, between 0 and 1, both excluded.

    Returns:
      ln g, float32 `[N]`; its exponential sums to 1.

    Raises:
      TypeError, ValueError: as `geometric_last`.

    Example:
      >>> [round(g, 4) for g in jnp.exp(geometric_renormalised(4, 0.5)).tolist()]
      [0.5333, 0.2667, 0.1333, 0.0667]

    Source: Banino et al. 2021, PonderNet, whose truncated prior has two public versions;
      `geometric_last` is the other one.
    """
    log_g = _log_geometric(steps, rate)
    return jnp.asarray(log_g - np.log(-np.expm1(steps * np.log1p(-rate))), jnp.float32)


def kl_posterior_prior(log_p: PerStep, log_prior: Prior) -> PerRow:
    """KL(p || g) from the halting distribution to the prior, the direction of the paper.

    sum_n p_n (ln p_n - ln g_n). It allows the probability of a step to become 0.

    Args:
      log_p: ln p, `[N, B]`, from `log_halting`.
      log_prior: ln g, `[N]`.

    Returns:
      `[B]` in nats.

    Raises:
      ValueError: `log_p` and `log_prior` differ in the number of steps.

    Example:
      >>> p = jnp.log(jnp.array([[0.2], [0.4], [0.2], [0.2]]))
      >>> print(f"{kl_posterior_prior(p, geometric_last(4, 0.5))[0]:.5f}")
      0.19274

    Source: Banino et al. 2021, PonderNet.
    """
    log_g = _column(log_p, log_prior)
    return (jnp.exp(log_p) * (log_p - log_g)).sum(axis=0)


def kl_prior_posterior(log_p: PerStep, log_prior: Prior) -> PerRow:
    """KL(g || p) from the prior to the halting distribution, the direction of public code.

    sum_n g_n (ln g_n - ln p_n). It keeps the probability of every step above 0.

    Args:
      log_p: ln p, `[N, B]`, from `log_halting`.
      log_prior: ln g, `[N]`.

    Returns:
      `[B]` in nats.

    Raises:
      ValueError: `log_p` and `log_prior` differ in the number of steps.

    Example:
      >>> p = jnp.log(jnp.array([[0.2], [0.4], [0.2], [0.2]]))
      >>> print(f"{kl_prior_posterior(p, geometric_last(4, 0.5))[0]:.5f}")
      0.22314

    Source: the released PALBERT and the parity reproduction of PonderNet in mildlyoverfitted.
    """
    log_g = _column(log_p, log_prior)
    return (jnp.exp(log_g) * (log_g - log_p)).sum(axis=0)


def halting_entropy(log_p: PerStep) -> PerRow:
    """Entropy of the halting distribution, -sum_n p_n ln p_n.

    Args:
      log_p: ln p, `[N, B]`, finite.

    Returns:
      `[B]` in nats, 0..ln N; 0 means that halting has collapsed to one step.

    Example:
      >>> print(f"{halting_entropy(jnp.log(jnp.full((4, 1), 0.25)))[0]:.4f}")
      1.3863
    """
    return -(jnp.exp(log_p) * log_p).sum(axis=0)


def ponder_loss(
    losses: PerStep,
    halt_logits: PerStep,
    log_prior: Prior,
    beta: float,
    divergence: Callable[[PerStep, Prior], PerRow] = kl_prior_posterior,
) -> PonderLoss:
    """Expected loss under the halting distribution, regularised towards a prior.

    L_b = sum_n p_nb l_nb + beta D(p_b, g).

    Args:
      losses: l, `[N, B]`, the loss of each step.
      halt_logits: `[N, B]`; p is that of `log_halting`.
      log_prior: ln g, `[N]`, from `geometric_last` or `geometric_renormalised`.
      beta: at least 0; 0.01 for training from scratch, 0.5 for the fine-tuning of PALBERT.
      divergence: D, `divergence(log_p [N, B], log_prior [N]) -> [B]`: `kl_prior_posterior` or
        `kl_posterior_prior`.

    Returns:
      A `PonderLoss`, unreduced over the batch.

    Raises:
      ValueError: the shapes do not match, `beta` is negative, or a prior that is not traced does
        not sum to 1.

    Example:
      >>> losses = jnp.array([[1.0], [0.5], [0.0]])
      >>> out = ponder_loss(losses, jnp.zeros((3, 1)), geometric_last(3, 0.5), beta=0.01)
      >>> out.loss.tolist(), out.mean_steps.tolist()  # p = 1/2, 1/4, 1/4, the prior itself
      ([0.625], [1.75])

    Source: Banino et al. 2021, PonderNet. `dynexit.methods.halting.pondernet` has the KL direction
      and the tail of the released code as defaults.
    """
    if losses.shape != halt_logits.shape:
        raise ValueError(
            "`losses` must have the shape of `halt_logits` [N, B], "
            f"got {losses.shape} and {halt_logits.shape}"
        )
    if not beta >= 0:
        raise ValueError(f"`beta` must be at least 0, got {beta}")
    if not isinstance(log_prior, Tracer):
        total = float(np.exp(np.asarray(log_prior, np.float64)).sum())
        if not abs(total - 1) < 1e-3:
            raise ValueError(
                "`log_prior` must be the logarithm of probabilities that sum to 1, "
                f"got a sum of {total:.4g}"
            )
    log_p = log_halting(halt_logits)
    p = jnp.exp(log_p)
    expected = (p * losses.astype(p.dtype)).sum(axis=0)
    kl = divergence(log_p, log_prior)
    steps = jnp.arange(1, len(p) + 1, dtype=p.dtype)[:, None]
    return PonderLoss(
        expected + beta * kl, expected, kl, p, (steps * p).sum(axis=0), halting_entropy(log_p)
    )


def _log_geometric(steps: int, rate: float) -> HostArray:
    steps = positive_integer(steps, "steps")
    if not 0 < rate < 1:
        raise ValueError(f"`rate` must lie between 0 and 1, both excluded, got {rate}")
    return np.log(rate) + np.arange(steps) * np.log1p(-rate)


def _column(log_p: Array, log_prior: Array) -> Array:
    if log_p.ndim != 2 or log_prior.shape != log_p.shape[:1]:
        raise ValueError(
            "`log_prior` must have shape [N] for `log_p` [N, B], "
            f"got {log_prior.shape} and {log_p.shape}"
        )
    return log_prior.astype(log_p.dtype)[:, None]
