"""Weights `[E]` of the losses of the exits; all sum to 1 except `ones` and `sdn`."""

from collections.abc import Sequence
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dynexit.core.checks import positive_integer
from dynexit.core.shapes import AnyArray, Array, Float, HostArray, Num

Weights: TypeAlias = Float[Array, "E"]
Given: TypeAlias = Sequence[float] | Num[AnyArray, "E"]


def uniform(exits: int) -> Weights:
    """Equal weights, w_e = 1 / E.

    Args:
      exits: E, at least 1.

    Returns:
      float32 `[E]`, sum 1.

    Raises:
      TypeError: `exits` is not an integer.
      ValueError: `exits` is below 1.

    Example:
      >>> uniform(4).tolist()
      [0.25, 0.25, 0.25, 0.25]
    """
    exits = positive_integer(exits, "exits")
    return jnp.full(exits, 1 / exits, jnp.float32)


def ones(exits: int) -> Weights:
    """Weights of the plain sum of all losses, w_e = 1.

    The loss is E times that of `uniform`, which changes the effect of weight decay and of gradient
    clipping.

    Args:
      exits: E, at least 1.

    Returns:
      float32 `[E]`, sum E.

    Raises:
      TypeError, ValueError: as `uniform`.

    Example:
      >>> ones(3).tolist()
      [1.0, 1.0, 1.0]

    Source: Huang et al. 2018, MSDNet.
    """
    return jnp.ones(positive_integer(exits, "exits"), jnp.float32)


def linear(exits: int) -> Weights:
    """Weights that grow linearly with depth, w_e = (e + 1) / sum_{k=1}^{E} k.

    Args:
      exits: E, at least 1.

    Returns:
      float32 `[E]`, sum 1.

    Raises:
      TypeError, ValueError: as `uniform`.

    Example:
      >>> [round(w, 2) for w in linear(4).tolist()]
      [0.1, 0.2, 0.3, 0.4]

    Source: Zhou et al. 2020, PABEE.
    """
    return _normalised(np.arange(1, positive_integer(exits, "exits") + 1))


def layerskip(exits: int, early_scale: float = 0.2) -> Weights:
    """Weights of LayerSkip for an exit after every layer, as printed in the paper.

    e(l) = s sum_{i<=l} i for l < L-1, and e(L-1) = L-1 + s sum_{i<=L-2} i; w = e / sum e. Layer 0
    has weight 0.

    Args:
      exits: E = L, the number of layers, at least 1.
      early_scale: s, at least 0; the paper uses 0.2 for language models and 1 for TOPv2.

    Returns:
      float32 `[E]`, sum 1; with one exit its weight is 1.

    Raises:
      TypeError, ValueError: as `uniform`; `early_scale` is negative.

    Example:
      >>> [round(w, 4) for w in layerskip(8).tolist()]
      [0.0, 0.0089, 0.0268, 0.0536, 0.0893, 0.1339, 0.1875, 0.5]

    Source: Elhoushi et al. 2024, LayerSkip, paper form, taken from a secondary summary.
    """
    exits = positive_integer(exits, "exits")
    sums = _scale(early_scale) * np.cumsum(np.arange(exits, dtype=np.float64))
    sums[-1] = exits - 1 + (sums[-2] if exits > 1 else 1)
    return _normalised(sums)


def early_scaled(curve: Given, early_scale: float = 1.0) -> Weights:
    """Weights of LayerSkip in torchtune: a curve whose early entries are scaled, then normalised.

    w_e = s f_e / z for e < E-1, and w_{E-1} = f_{E-1} / z, with z such that the sum is 1. The
    default curve "sum" of torchtune is the cumulative sum of the layer numbers counted from 1; its
    curve "linear" is the layer numbers.

    Args:
      curve: f, numbers `[E]` of at least 0, the last above 0.
      early_scale: s, at least 0.

    Returns:
      float32 `[E]`, sum 1.

    Raises:
      ValueError: `curve` is empty, not one-dimensional, negative, or ends in 0; `early_scale` is
        negative.

    Example:
      >>> layers = np.arange(1, 9)
      >>> last = early_scaled(np.cumsum(layers))[-1], early_scaled(layers, 0.2)[-1]
      >>> [round(float(w), 4) for w in last]
      [0.3, 0.5882]

    Source: torchtune, `modules/early_exit_loss.py`; it differs from the paper (`layerskip`).
    """
    curve = np.asarray(curve, np.float64)
    if curve.ndim != 1 or curve.size == 0:
        raise ValueError(
            f"`curve` must have shape [E] with at least one exit, got shape {curve.shape}"
        )
    if not (curve >= 0).all() or not curve[-1] > 0:
        raise ValueError(f"`curve` must be at least 0 and end above 0, got {curve.tolist()}")
    return _normalised(np.append(_scale(early_scale) * curve[:-1], curve[-1]))


def sdn(relative_costs: Given, progress: float | Float[AnyArray, ""]) -> Weights:
    """Weights of early exits that grow during training.

    w_e = min(C_e, 0.01 + progress C_e) for e < E-1, and w_{E-1} = 1.

    Args:
      relative_costs: C, `[E]`, the cost of each exit divided by that of the last exit; the last
        entry is not used.
      progress: fraction of training done, float32 `[]` in 0..1; may be traced.

    Returns:
      float32 `[E]`; the sum grows during training.

    Raises:
      ValueError: `relative_costs` is empty or not one-dimensional, or has values outside 0..1 (not
        checked while tracing).

    Example:
      >>> [round(w, 3) for w in sdn([0.15, 0.5, 1.0], 0.5).tolist()]
      [0.085, 0.26, 1.0]

    Source: Kaya et al. 2019, Shallow-Deep Networks (SDN), with epoch / epochs as `progress`.
    """
    if not isinstance(relative_costs, Tracer):
        values = np.asarray(relative_costs)
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(
                "`relative_costs` must lie in 0..1, as fractions of the cost of the last exit, "
                f"got {values.tolist()}"
            )
    costs = jnp.asarray(relative_costs, jnp.float32)
    if costs.ndim != 1 or costs.size == 0:
        raise ValueError(
            f"`relative_costs` must have shape [E] with at least one exit, got shape {costs.shape}"
        )
    grown = jnp.minimum(costs, 0.01 + jnp.asarray(progress, jnp.float32) * costs)
    return grown.at[-1].set(1.0)


def _scale(early_scale: float) -> float:
    if not early_scale >= 0:
        raise ValueError(f"`early_scale` must be at least 0, got {early_scale}")
    return early_scale


def _normalised(values: HostArray) -> Array:
    return jnp.asarray(values / values.sum(), jnp.float32)
