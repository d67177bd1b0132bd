"""Counters of rows x steps that are exact beyond 2^31, with JAX's 64-bit types enabled or not.

If the shapes of a run allow a count of 2^31 or more, its counter is two uint32 words during the run
and an int64 at the end; otherwise it is an int32.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from dynexit.core.shapes import Array, Int, Num

Counter: TypeAlias = Num[Array, "..."]  # int32 `[]`, or two words, uint32 `[2]`


def no_rows(most: Any) -> Counter:
    """A counter of 0.

    Args:
      most: the largest possible count; if it is not an integer (a symbolic batch size), the counter
        has two words.
    """
    if isinstance(most, int) and most < 2**31:
        return jnp.int32(0)
    return jnp.zeros(2, jnp.uint32)


def counted(count: Counter, rows: int | Int[Array, ""]) -> Counter:
    """The counter increased by `rows`, int32 `[]`, not negative."""
    if count.ndim == 0:
        return count + rows
    low = count[0] + jnp.asarray(rows).astype(jnp.uint32)
    return jnp.stack([low, count[1] + (low < count[0]).astype(jnp.uint32)])


def total(count: Counter) -> Int[Array, ""]:
    """The value of the counter: int32 or int64 `[]`."""
    if count.ndim == 0:
        return count
    with jax.enable_x64(True):
        low, high = (lax.convert_element_type(count[k], jnp.int64) for k in (0, 1))
        return low + high * 2**32


def summed(parts: Int[Array, "B"], most: int) -> Int[Array, ""]:
    """The sum of int32 parts, at most `most`: int32 or int64 `[]`."""
    if most < 2**31:
        return parts.sum(dtype=jnp.int32)
    with jax.enable_x64(True):
        return jnp.sum(lax.convert_element_type(parts, jnp.int64))
