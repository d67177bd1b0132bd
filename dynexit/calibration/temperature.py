"""One temperature per exit, so that confidences mean the same at all of them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from dynexit.core.labels import IGNORED, as_labels, check_labels
from dynexit.core.types import Array

HALVINGS = 40  # of the bracket of ln T: beyond float32's resolution


def fit_temperature(
    logits: Array, labels: Array, lowest: float = 0.1, highest: float = 10.0
) -> Array:
    """The temperature of each exit that minimises its negative log-likelihood, by bisection.

    With b = 1 / T the NLL, mean_m lse(b z_m) - b z_m[y_m], is convex in b; its slope, mean_m E_p[z]
    - z_y, is bisected on ln b. An exit that is right about every row would want T = 0 and gets
    `lowest`.

    Args:
      logits: `[E, M, C]`, of a calibration split. Rows with a NaN are left out.
      labels: integers `[M]`; rows with -1 (`dynexit.core.labels.IGNORED`) are left out too.
      lowest, highest: bracket of T, with 1 in it.

    Returns:
      float32 `[E]`; the NLL at it is never above that at T = 1.

    Raises:
      TypeError: labels that are not integers.
      ValueError: shapes that do not fit, labels that are no class (where they are not traced), or a
        bracket without 1.

    Example:
      >>> # right in 3 of 4: p should be 0.75
      >>> logits = jnp.array([[[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]]])
      >>> temperature = fit_temperature(logits, jnp.array([0, 0, 0, 1]))
      >>> print(f"{temperature[0]:.3f}")  # 2 / ln 3
      1.820

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2; one temperature
      an exit is our extension.
    """
    if jnp.ndim(logits) != 3 or 0 in jnp.shape(logits):
        raise ValueError(
            f"`logits` must have shape [E, M, C], none of them 0, got {jnp.shape(logits)}"
        )
    labels = as_labels(labels)
    if jnp.shape(labels) != jnp.shape(logits)[1:2]:
        raise ValueError(
            f"`labels` must have shape [M] = [{jnp.shape(logits)[1]}], got {jnp.shape(labels)}"
        )
    if not 0 < lowest <= 1 <= highest:
        raise ValueError(
            f"`lowest` and `highest` must hold 0 < lowest <= 1 <= highest, got {lowest} and {highest}"
        )
    if not isinstance(labels, Tracer):
        check_labels(np.asarray(labels), jnp.shape(logits)[2], "labels")
    return _fit(jnp.asarray(logits), jnp.asarray(labels), jnp.float32(lowest), jnp.float32(highest))


def mean_nll(logits: Array, labels: Array, temperature: Array) -> Array:
    """Mean negative log-likelihood of one exit, -mean_m ln softmax(z_m / T)[y_m], over the rows
    that count and hold no NaN.

    Args:
      logits: `[M, C]`.
      labels: integers `[M]`; -1 for a row that does not count.
      temperature: T, `[]`.

    Returns:
      float32 `[]`, nats; 0 where no row is left.

    Example:
      >>> # ln 2
      >>> print(f"{mean_nll(jnp.zeros((3, 2)), jnp.array([0, 1, 1]), jnp.float32(2.0)):.4f}")
      0.6931
    """
    labels = jnp.asarray(as_labels(labels))
    z, valid = _clean(logits, labels)
    log_p = jax.nn.log_softmax(z / temperature)
    return _mean(-_of_label(log_p, labels), valid)


@jax.jit
def _fit(logits: Array, labels: Array, lowest: Array, highest: Array) -> Array:
    def one_exit(
        logits,
    ):  # [M, C]; lax.map and not vmap, to hold one exit's probabilities at a time
        z, valid = _clean(logits, labels)
        label = _of_label(z, labels)

        def halve(_, bracket):
            low, high = (
                bracket  # of ln T; where the slope in b is positive, b is too large and T too small
            )
            middle = (low + high) / 2
            p = jax.nn.softmax(z / jnp.exp(middle))
            slope = _mean(jnp.where(p == 0, 0.0, p * z).sum(axis=1) - label, valid)
            return jnp.where(slope > 0, middle, low), jnp.where(slope > 0, high, middle)

        low, high = lax.fori_loop(0, HALVINGS, halve, (jnp.log(lowest), jnp.log(highest)))
        fitted = jnp.clip(jnp.exp((low + high) / 2), lowest, highest)
        better = mean_nll(logits, labels, fitted) < mean_nll(logits, labels, jnp.float32(1.0))
        return jnp.where(better, fitted, 1.0)

    return lax.map(one_exit, logits)


def _clean(logits: Array, labels: Array) -> tuple[Array, Array]:
    """float32 logits whose largest is 0, with zeros for rows that hold a NaN or do not count, and
    which rows do neither.
    """
    valid = ~jnp.isnan(logits).any(axis=1) & (labels != IGNORED)
    z = jnp.where(valid[:, None], logits.astype(jnp.float32), 0.0)
    return z - z.max(axis=1, keepdims=True), valid


def _of_label(values: Array, labels: Array) -> Array:
    """The entry of each row's label, `[M, C]` to `[M]`; of the first class where no label counts."""
    return jnp.take_along_axis(values, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]


def _mean(values: Array, valid: Array) -> Array:
    return jnp.where(valid, values, 0.0).sum() / jnp.maximum(valid.sum(dtype=jnp.float32), 1.0)
