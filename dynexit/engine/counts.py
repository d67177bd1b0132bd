"""Counters of rows x steps that are exact beyond 2^31, with JAX's 64-bit types enabled or not.

Where a run may count beyond 2^31, which its shapes tell, a counter is two uint32 words while it
runs and an int64 at the end; else it is an int32 throughout.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dynexit.core.types import Array


def no_rows(most: Any) -> Array:
    """The counter at 0.

    Args:
      most: what it may reach; where that is no integer (a symbolic batch size) it is wide.
    """
    if isinstance(most, int) and most < 2**31:
        return jnp.int32(0)
    return jnp.zeros(2, jnp.uint32)


def counted(count: Array, rows: Any) -> Array:
    """The counter, `rows` (int32 `[]`, not negative) further."""
    if count.ndim == 0:
        return count + rows
    low = count[0] + jnp.asarray(rows).astype(jnp.uint32)
    return jnp.stack([low, count[1] + (low < count[0]).astype(jnp.uint32)])


def total(count: Array) -> Array:
    """What the counter stands at: int32 or int64 `[]`."""
    if count.ndim == 0:
        return count
    with jax.enable_x64(True):
        low, high = (lax.convert_element_type(count[k], jnp.int64) for k in (0, 1))
        return low + high * 2**32


def summed(parts: Array, most: int) -> Array:
    """The sum of int32 parts, which may reach `most`: int32 or int64 `[]`."""
    if most < 2**31:
        return parts.sum(dtype=jnp.int32)
    with jax.enable_x64(True):
        return jnp.sum(lax.convert_element_type(parts, jnp.int64))
