"""The mean over the places of a row without padded ones."""

import jax.numpy as jnp

from dynexit.core.shapes import Array, Bool, Float
from dynexit.layers.norms import wide


def mean_over_places(
    x: Float[Array, "b *places D"], real: Bool[Array, "b *places"] | None = None
) -> Float[Array, "b D"]:
    """The mean over all axes between the first and the last.

    Args:
      x: `[b, ..., D]`.
      real: bool `[b, ...]`, False at padded places; None for no padding.

    Returns:
      `[b, D]`, in the type of x; zeros for a row without any real place.

    Example:
      >>> x = jnp.array([1.0, 3.0, 8.0]).reshape(1, 3, 1)
      >>> mean_over_places(x, jnp.array([[True, True, False]])).tolist()
      [[2.0]]
    """
    axes = tuple(range(1, x.ndim - 1))
    if real is None:
        return x.mean(axis=axes)
    total = jnp.where(real[..., None], wide(x), 0).sum(axis=axes)
    count = jnp.maximum(real.sum(axis=axes), 1)
    return (total / count.astype(total.dtype)[:, None]).astype(x.dtype)
