"""The compacted schedule: a block runs on tiles of rows that are still alive, so its time follows their number.

Rows live in *places* 0..B-1, the live ones first, and `row_at` says which row stands at a place. A block takes the live places as
contiguous tiles: as many full ones as there are (a loop whose trip count is known at run time only), then the remainder in tiles
of a quarter of that size, and so on down to the smallest that is worth reading the weights for; only there may some rows be
computed in vain. After the block every row that left from among the places still needed changes places with a live one from beyond
them. At the end the places are put back into the order of the batch.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dynexit.core.checks import Stage
from dynexit.core.types import Array, Criterion, PyTree
from dynexit.exits.rows import Rows, forget_departed, last_exit, read_exit, where_rows, zeros


def run_compacted(
    stages: tuple[Stage, ...], criterion: Criterion, rows: Rows, spaces: tuple[PyTree, ...], tile: int
) -> tuple[Rows, tuple]:
    """As `run_masked`, on tiles of live rows.

    Args:
      stages, criterion, rows, spaces: as there.
      tile: rows per tile, 1..B.
    """
    batch = rows.alive.shape[0]
    row_at, live = jnp.arange(batch, dtype=jnp.int32), jnp.int32(batch)
    states = []
    for stage, space in zip(stages, spaces, strict=True):
        if stage.steps > 1:
            rows, row_at, live = _loop(stage, criterion, rows, row_at, live, tile, last_exit(stages))
        else:
            source, rows = rows.state, rows._replace(state=zeros(space))
            rows = _advance(stage, jnp.int32(0), criterion, rows, live, tile, last_exit(stages), source)
            rows, row_at, live = _close_ranks(rows, row_at)
        states.append((rows.state, row_at))
    back = lambda tree, row_at: jax.tree.map(lambda a: a[_inverse(row_at)], tree)
    account = back(rows[1:-1], row_at)
    return Rows._make((rows.state, *account, rows.executed)), tuple(back(state, places) for state, places in states)


def tile_sizes(tile: int, least: int) -> tuple[int, ...]:
    """The full tile, then ever smaller ones for the rows that remain: a quarter each time, down to `least` rows."""
    sizes = [tile]
    while sizes[-1] > least:
        sizes.append(max(least, sizes[-1] // 4))
    return tuple(sizes)


def default_tile(state: Any, batch: int) -> int:
    """A tile whose rows fit the cache of one core: a power of two, 8..128 rows of together about half a megabyte of state."""
    return min(batch, max(8, min(128, _rows_of(2**19, state))))


def least_tile(state: Any, tile: int) -> int:
    """The tile below which time hardly falls with rows, for the weights are read all the same: 8 kB of state, 4 rows at most."""
    return min(tile, 4, _rows_of(2**13, state))


def _rows_of(size: int, state: Any) -> int:
    """The power of two of rows, at least 1, whose state has about `size` bytes."""
    row = sum(a.size // a.shape[0] * a.dtype.itemsize for a in jax.tree.leaves(state))
    return 2 ** max(0, round(math.log2(size / max(1, row))))


def _loop(stage: Stage, criterion: Criterion, rows: Rows, row_at: Array, live: Array, tile: int, last: int):
    if stage.first:
        rows = forget_departed(rows)

    def body(carry):
        i, rows, row_at, live = carry
        rows = _advance(stage, i, criterion, rows, live, tile, last)
        return i + 1, *_close_ranks(rows, row_at)

    go_on = lambda carry: (carry[0] < stage.steps) & (carry[3] > 0)
    return lax.while_loop(go_on, body, (jnp.int32(0), rows, row_at, live))[1:]


def _advance(
    stage: Stage, i: Array, criterion: Criterion, rows: Rows, live: Array, tile: int, last: int, source: PyTree = None
) -> Rows:
    """One step on the first `live` places. A step that changes the state's shape reads `source` and writes `rows.state`."""
    weights = stage.step.select(i)  # once per block, not once per tile
    exit = stage.first + i

    def run(rows: Rows, begin: Array, size: int, ragged: bool) -> Rows:
        start = jnp.minimum(begin, rows.alive.shape[0] - size) if ragged else begin
        place = start + jnp.arange(size, dtype=jnp.int32)
        keep = (place >= begin) & (place < live)  # a ragged tile also holds rows that are done, which stay as they are
        read = lambda tree: jax.tree.map(
            lambda a: a.at[place].get(mode="promise_in_bounds", unique_indices=True, indices_are_sorted=True), tree
        )
        put = lambda tree, new: jax.tree.map(lambda a, b: lax.dynamic_update_slice_in_dim(a, b, start, 0), tree, new)
        write = lambda tree, new: put(tree, where_rows(keep, new, read(tree)) if ragged else new)
        state, output = stage.step.apply(weights, i, read(rows.state if source is None else source))
        leaves, memory, nan = read_exit(criterion, exit, exit == last, output, read(rows.memory))
        return Rows(
            state=write(rows.state, state),
            output=write(rows.output, output),
            exit=write(rows.exit, jnp.full(size, exit, jnp.int32)),
            memory=write(rows.memory, memory),
            alive=write(rows.alive, ~leaves),
            nan_exits=write(rows.nan_exits, read(rows.nan_exits) + nan.astype(jnp.int32)),
            executed=rows.executed + size,
        )

    done = jnp.int32(0)
    sizes = tile_sizes(tile, least_tile(rows.state if source is None else source, tile))
    for size in sizes:
        ragged = size == sizes[-1] > 1
        count = (live - done + (size - 1 if ragged else 0)) // size
        turn = lambda t, rows, done=done, size=size, ragged=ragged: run(rows, done + t * size, size, ragged)
        rows = lax.fori_loop(0, count, turn, rows)
        done += count * size
    return rows


def _close_ranks(rows: Rows, row_at: Array) -> tuple[Rows, Array, Array]:
    """Live rows to the front: those beyond the places still needed change places with rows that left from within them."""
    batch = row_at.shape[0]
    place = jnp.arange(batch, dtype=jnp.int32)
    needed = rows.alive.sum(dtype=jnp.int32)
    holes = ~rows.alive & (place < needed)
    movers = rows.alive & (place >= needed)
    moves = holes.sum(dtype=jnp.int32)
    kth = lambda mask: jnp.where(place < moves, jnp.nonzero(mask, size=batch, fill_value=0)[0].astype(jnp.int32), batch)
    hole, mover = kth(holes), kth(movers)  # the k-th of each; beyond the moves out of range, so written nowhere
    origin = place.at[hole].set(mover, mode="drop").at[mover].set(hole, mode="drop")
    take = lambda tree: jax.tree.map(lambda a: a.at[origin].get(mode="promise_in_bounds", unique_indices=True), tree)
    state = lax.cond(moves > 0, take, lambda tree: tree, rows.state)
    return Rows._make((state, *take(rows[1:-1]), rows.executed)), take(row_at), needed


def _inverse(row_at: Array) -> Array:
    """Where each row stands, from which row stands where."""
    return jnp.zeros_like(row_at).at[row_at].set(jnp.arange(row_at.shape[0], dtype=jnp.int32), unique_indices=True)
