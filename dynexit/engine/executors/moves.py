"""How rows are read from buffers, written to them, and ordered; what all tiled executors share."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dynexit.core.types import Array, PyTree

BITS = 29  # of a position, in an int32 that is sorted; two more are for the group


def empty_rows(tree: PyTree, rows: Any) -> PyTree:
    """Zeros for so many rows like those of the arrays or shapes `tree`."""
    return jax.tree.map(lambda a: jnp.zeros((rows, *a.shape[1:]), a.dtype), tree)


def extended(tree: PyTree, padding: int) -> PyTree:
    """The rows, and so many rows of zeros behind them."""
    if not padding:
        return tree
    return jax.tree.map(lambda a: jnp.pad(a, [(0, padding)] + [(0, 0)] * (a.ndim - 1)), tree)


def take_tile(tree: PyTree, begin: Array, size: int) -> PyTree:
    """Rows at `size` places from `begin` on."""
    cut = lambda a: lax.dynamic_slice_in_dim(a, begin, size, allow_negative_indices=False)
    return jax.tree.map(cut, tree)


def write_tile(buffers: PyTree, rows: PyTree, begin: Array) -> PyTree:
    """The buffers with the rows at places from `begin` on; entries that are None stay so."""
    put = lambda a, b: lax.dynamic_update_slice_in_dim(a, b, begin, 0, allow_negative_indices=False)
    return jax.tree.map(put, buffers, rows)


def read_rows(tree: PyTree, place: Array) -> PyTree:
    """The rows at some places, int32 `[t]`, all different.

    One row is read twice, and kept once: XLA makes a slice of a gather of one row, fuses it into
    all that uses it, the writing of the tile among it, and then copies the whole buffer to be able
    to read it after that.
    """
    one = place.shape[0] == 1
    places = jnp.tile(place, 2) if one else place
    read = lambda a: a.at[places].get(
        mode="promise_in_bounds", unique_indices=not one, wrap_negative_indices=False
    )
    return jax.tree.map(lambda a: read(a)[:1] if one else read(a), tree)


def survivors_first(exits: Array, count: Array, *along: Array) -> tuple[Array, ...]:
    """The positions of survivors, then of rows that exit, both rising, then those from `count` on.

    Args:
      exits: int32 `[P]`, 1 where a row exits, else 0.
      count: int32 `[]`, the rows that `exits` is about.
      along: `[P]`, what is put into that order with them.

    Returns:
      int32 `[P]`, the positions; int32 `[]`, how many survivors; and all of `along`.
    """
    position = jnp.arange(exits.shape[0], dtype=jnp.int32)
    group = jnp.where(position < count, exits, 2)
    # on a CPU, sorting integers and gathering by them is quicker than sorting all together
    order = order_by_group(group)
    take = lambda a: a.at[order].get(mode="promise_in_bounds", wrap_negative_indices=False)
    return order, (group == 0).sum(dtype=jnp.int32), *map(take, along)


def order_by_group(group: Array) -> Array:
    """The positions of rows `[P]` by their group, a small int32, and within a group as they stood."""
    position = jnp.arange(group.shape[0], dtype=jnp.int32)
    return lax.sort((group << BITS) | position, is_stable=False) & (2**BITS - 1)


def in_row_order(row: Array, *along: Array) -> tuple[Array, ...]:
    """From int32 `[B]`, which row stands at a position: the position of each row, and `along` in
    the order of the rows.
    """
    position = jnp.arange(row.shape[0], dtype=jnp.int32)
    return lax.sort((row, position, *along), is_stable=False, num_keys=1)[1:]
