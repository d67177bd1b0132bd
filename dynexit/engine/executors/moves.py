"""Reading rows from buffers, writing and ordering them; shared by all tiled executors."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dynexit.core.shapes import Array, Int, PyTree, Rows, Shaped

BITS = 29  # of a position in a sorted int32; the next two bits hold the group


def empty_rows(tree: PyTree, rows: Any) -> Rows:
    """Zeros for this number of rows, with the shapes and types of the rows of `tree`."""
    return jax.tree.map(lambda a: jnp.zeros((rows, *a.shape[1:]), a.dtype), tree)


def extended(tree: Rows, padding: int) -> PyTree:
    """The rows, followed by `padding` rows of zeros."""
    if not padding:
        return tree
    return jax.tree.map(lambda a: jnp.pad(a, [(0, padding)] + [(0, 0)] * (a.ndim - 1)), tree)


def take_tile(tree: Rows, begin: int | Int[Array, ""], size: int) -> PyTree:
    """The `size` rows from index `begin` on."""
    cut = lambda a: lax.dynamic_slice_in_dim(a, begin, size, allow_negative_indices=False)
    return jax.tree.map(cut, tree)


def write_tile(buffers: Rows, rows: PyTree, begin: int | Int[Array, ""]) -> Rows:
    """The buffers with `rows` written from index `begin` on; entries that are None stay None."""
    put = lambda a, b: lax.dynamic_update_slice_in_dim(a, b, begin, 0, allow_negative_indices=False)
    return jax.tree.map(put, buffers, rows)


def read_rows(tree: Rows, place: Int[Array, "t"]) -> PyTree:
    """The rows at distinct places, int32 `[t]`.

    A single row is read twice and one copy is dropped. XLA turns a gather of one row into a slice
    and fuses it into its uses. One of them writes the tile, so XLA would copy the whole buffer to
    read it after the write.
    """
    one = place.shape[0] == 1
    places = jnp.tile(place, 2) if one else place
    read = lambda a: a.at[places].get(
        mode="promise_in_bounds", unique_indices=not one, wrap_negative_indices=False
    )
    return jax.tree.map(lambda a: read(a)[:1] if one else read(a), tree)


def survivors_first(
    exits: Int[Array, "P"], count: Int[Array, ""], *along: Shaped[Array, "P"]
) -> tuple[Shaped[Array, "..."], ...]:
    """Sorts positions: survivors, rows that exit, then the positions from `count` on.

    Args:
      exits: int32 `[P]`, 1 where a row exits, else 0.
      count: int32 `[]`, the number of rows to which `exits` applies.
      along: `[P]`, arrays that are put into the same order.

    Returns:
      The positions, int32 `[P]`, increasing within each group; the number of survivors, int32 `[]`;
      and all of `along`.
    """
    position = jnp.arange(exits.shape[0], dtype=jnp.int32)
    group = jnp.where(position < count, exits, 2)
    # on a CPU, sorting integers and gathering by them is quicker than sorting all together
    order = order_by_group(group)
    take = lambda a: a.at[order].get(mode="promise_in_bounds", wrap_negative_indices=False)
    return order, (group == 0).sum(dtype=jnp.int32), *map(take, along)


def order_by_group(group: Int[Array, "P"]) -> Int[Array, "P"]:
    """The positions of rows `[P]` sorted by group, a small int32; the sort is stable."""
    position = jnp.arange(group.shape[0], dtype=jnp.int32)
    return lax.sort((group << BITS) | position, is_stable=False) & (2**BITS - 1)


def in_row_order(
    row: Int[Array, "B"], *along: Shaped[Array, "B"]
) -> tuple[Shaped[Array, "B"], ...]:
    """The position of each row, and `along` in the order of the rows.

    `row`, int32 `[B]`, is the index of the row at each position.
    """
    position = jnp.arange(row.shape[0], dtype=jnp.int32)
    return lax.sort((row, position, *along), is_stable=False, num_keys=1)[1:]
