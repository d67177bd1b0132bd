"""Normalisation within a row, computed in float32 or better."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.shapes import Array, Float


def wide(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x` in float32, or in float64 where it is float64.

    Example:
      >>> wide(jnp.ones(2, jnp.bfloat16)).dtype
      dtype('float32')
    """
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _types(x: Array) -> dict[str, Any]:
    """Options with which flax casts scale and bias to the type of `x`."""
    return dict(dtype=x.dtype, param_dtype=x.dtype, force_float32_reductions=False)


class LayerNorm(nn.Module):
    """(x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias over the last axis, in the type of x.

    Attributes:
      epsilon: added to the variance.

    Example:
      >>> norm = LayerNorm()
      >>> params = norm.init(jax.random.key(0), jnp.ones((1, 2)))
      >>> norm.apply(params, jnp.array([[1.0, 3.0]])).round(3).tolist()
      [[-1.0, 1.0]]

    Source: Ba et al. 2016, arXiv 1607.06450.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        x_wide = wide(x)
        norm = nn.LayerNorm(self.epsilon, **_types(x_wide))
        return norm(x_wide).astype(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis, in the type of x.

    Attributes:
      epsilon: added to the mean square.
      scaled: whether there is a learned scale.

    Example:
      >>> norm = RMSNorm(scaled=False)
      >>> norm.apply({}, jnp.array([[3.0, 3.0]])).round(3).tolist()
      [[1.0, 1.0]]

    Source: Zhang and Sennrich 2019, arXiv 1910.07467.
    """

    epsilon: float = 1e-6
    scaled: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        x_wide = wide(x)
        mean_square = jnp.mean(x_wide * x_wide, axis=-1, keepdims=True)
        normed = x_wide * jax.lax.rsqrt(mean_square + self.epsilon)
        if self.scaled:
            scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
            normed = normed * jnp.expand_dims(scale.astype(normed.dtype), range(x.ndim - 1))
        return normed.astype(x.dtype)


class GroupNorm(nn.Module):
    """Group normalisation over the places and channels of each group, in the type of x.

    Attributes:
      size: channels of a group; all channels where there are fewer.
      epsilon: added to the variance.

    Example:
      >>> norm = GroupNorm(size=4)
      >>> params = norm.init(jax.random.key(0), jnp.ones((1, 2, 2, 8)))
      >>> params["params"]["GroupNorm_0"]["scale"].shape
      (8,)

    Source: Wu and He 2018, arXiv 1803.08494.
    """

    size: int = 8
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        x_wide = wide(x)
        norm = nn.GroupNorm(
            num_groups=None,
            group_size=min(self.size, x.shape[-1]),
            epsilon=self.epsilon,
            **_types(x_wide),
        )
        return norm(x_wide).astype(x.dtype)
