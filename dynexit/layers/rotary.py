"""Rotary position embedding."""

import jax.numpy as jnp

from dynexit.core.shapes import AnyArray, Array, Float, Int


def rotary(
    x: Float[Array, "b L heads d"], positions: Int[Array, "#b L"], base: float = 10_000.0
) -> Float[Array, "b L heads d"]:
    """Rotates pairs of channels by angles that grow with the position.

    Channels j and j + d/2 are rotated by position * base^(-2j/d), so that the product of a query
    and a key depends on the distance between their positions.

    Args:
      x: queries or keys, `[b, L, heads, d]`, d even.
      positions: integers `[b, L]` or `[1, L]`.
      base: of the frequencies.

    Returns:
      `[b, L, heads, d]`, in the type of x; computed in float32.

    Example:
      >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
      >>> [round(value, 3) for value in rotary(x, jnp.array([[1]])).ravel().tolist()]
      [0.54, 0.841]

    Source: Su et al. 2021, RoFormer, arXiv 2104.09864, with halves in place of interleaved pairs.
    """
    half = x.shape[-1] // 2
    return rotate(x, positions, base ** (-jnp.arange(half, dtype=jnp.float32) / half))


def rotate(
    x: Float[Array, "b L heads d"], positions: Int[Array, "#b L"], rates: Float[AnyArray, "_"]
) -> Float[Array, "b L heads d"]:
    """As `rotary`, with the angle per position of every pair, float32 `[d/2]`.

    Example:
      >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
      >>> rotate(x, jnp.array([[1]]), jnp.array([0.0])).ravel().tolist()
      [1.0, 0.0]
    """
    half = x.shape[-1] // 2
    angle = (positions[..., None].astype(jnp.float32) * rates[None, None])[:, :, None]
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    rotated = [a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle)]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
