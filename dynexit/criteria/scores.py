"""Scores of an exit's logits: how sure the network is, `[..., C] -> [...]`, computed in float32.

With p = softmax(z / T). A NaN among a row's logits makes its score NaN, and no strict comparison
holds of a NaN. All of them need at least 2 classes: of one logit softmax is 1 whatever it says. For
a head of one logit z, a sigmoid, pass the two logits (0, z).
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.shapes import AnyArray, Array, Float, Num

Logits: TypeAlias = Num[Array, "*b C"]
Temperature: TypeAlias = float | np.generic | Float[AnyArray, "..."]
Score: TypeAlias = Float[Array, "*b"]


def max_probability(logits: Logits, temperature: Temperature = 1.0) -> Score:
    """Probability of the likeliest class, max_c p_c.

    Args:
      logits: `[..., C]` with C at least 2; the same in all functions below.
      temperature: T, scalar or with the leading axes of `[...]`; the same in all functions below.

    Returns:
      float32 `[...]` in 1/C..1.

    Raises:
      ValueError: fewer than 2 classes; in all functions below too.

    Example:
      >>> print(f"{max_probability(jnp.array([5.0, 1.0, 0.0])):.5f}")
      0.97556
    """
    return jnp.max(jax.nn.softmax(_scaled(logits, temperature)), axis=-1)


def entropy(logits: Logits, temperature: Temperature = 1.0) -> Score:
    """Shannon entropy in nats, -sum_c p_c ln p_c, with 0 ln 0 = 0.

    Args:
      logits: `[..., C]`; -inf for an excluded class is allowed.
      temperature: T, scalar or `[...]`.

    Returns:
      float32 `[...]` in 0..ln C.

    Example:
      >>> [round(float(h), 4) for h in entropy(jnp.array([[0.0, 0.0, 0.0], [100.0, 0.0, 0.0]]))]
      [1.0986, 0.0]
    """
    log_p = jax.nn.log_softmax(_scaled(logits, temperature))
    p = jnp.exp(log_p)
    return jnp.sum(p * jnp.where(p == 0, 0.0, -log_p), axis=-1)


def normalised_entropy(logits: Logits, temperature: Temperature = 1.0) -> Score:
    """Entropy over its maximum, H / ln C: FastBERT's uncertainty.

    Args:
      logits: `[..., C]`.
      temperature: T, scalar or `[...]`.

    Returns:
      float32 `[...]` in 0..1.

    Example:
      >>> print(f"{normalised_entropy(jnp.zeros(7)):.5f}")
      1.00000

    Source: Liu et al. 2020, FastBERT, equation 5.
    """
    return entropy(logits, temperature) / jnp.log(jnp.float32(logits.shape[-1]))


def margin(logits: Logits, temperature: Temperature = 1.0) -> Score:
    """Likeliest minus second likeliest probability, p_(1) - p_(2): CALM's softmax response.

    Args:
      logits: `[..., C]`.
      temperature: T, scalar or `[...]`.

    Returns:
      float32 `[...]` in 0..1.

    Example:
      >>> print(f"{margin(jnp.log(jnp.array([0.5, 0.3, 0.2]))):.5f}")
      0.20000
    """
    p = jax.nn.softmax(_scaled(logits, temperature))
    best = jnp.argmax(p, axis=-1, keepdims=True)
    places = jax.lax.broadcasted_iota(best.dtype, p.shape, p.ndim - 1)
    others = jnp.where(places == best, -jnp.inf, p)
    return p.max(axis=-1) - others.max(axis=-1)  # `top_k` sorts: 30 times as long on a CPU


def energy(logits: Logits, temperature: Temperature = 1.0) -> Score:
    """Free energy, -T ln sum_c exp(z_c / T); low for familiar inputs.

    Unlike the other scores it changes with a constant added to the logits.

    Args:
      logits: `[..., C]`.
      temperature: T, scalar or `[...]`.

    Returns:
      float32 `[...]`.

    Example:
      >>> print(f"{energy(jnp.array([5.0, 1.0, 0.0])):.5f}")
      -5.02474

    Source: Akbari et al. 2021, EBJR, on the logits as in the text (the released router takes
      softmax probabilities instead).
    """
    free = jax.nn.logsumexp(_scaled(logits, temperature), axis=-1)
    temperature = jnp.asarray(temperature, jnp.float32)
    return (
        -temperature.reshape(
            temperature.shape + (1,) * (free.ndim - temperature.ndim if temperature.ndim else 0)
        )
        * free
    )


def kl(logits_p: Logits, logits_q: Logits) -> Score:
    """Kullback-Leibler divergence in nats, KL(p || q) = sum_c p_c (ln p_c - ln q_c).

    0 ln 0 is 0.

    Args:
      logits_p, logits_q: `[..., C]`; log-probabilities are logits too.

    Returns:
      float32 `[...]`, at least 0; +inf where q excludes a class that p allows.

    Example:
      >>> print(f"{kl(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))):.5f}")
      0.14384
    """
    log_p, log_q = (jax.nn.log_softmax(_scaled(z, 1.0)) for z in (logits_p, logits_q))
    p = jnp.exp(log_p)
    excluded = (p == 0) & ~jnp.isnan(log_q)
    gap = jnp.where(excluded, 0.0, log_p) - jnp.where(excluded, 0.0, log_q)
    return jnp.maximum(jnp.sum(p * gap, axis=-1), 0.0)


def _scaled(logits: Array, temperature: Temperature) -> Array:
    if logits.ndim < 1 or logits.shape[-1] < 2:
        raise ValueError(
            f"`logits` must have at least 2 classes on the last axis, got shape {logits.shape}; "
            "for a head of one logit z pass the two logits (0, z)"
        )
    temperature = jnp.asarray(temperature, jnp.float32)
    missing = (1,) * (logits.ndim - temperature.ndim) if temperature.ndim else ()
    return logits.astype(jnp.float32) / temperature.reshape(temperature.shape + missing)
