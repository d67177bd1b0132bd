"""Which tiles a block runs on, given how many rows are live: the cheapest set of compiled sizes
that covers them.

A block is compiled for a few tile sizes. A tile of s rows costs c(s) seconds, which is not
proportional to s: below some size the weights are read all the same, and threads have nothing to
share. For n live rows the plan is the multiset of sizes

    argmin sum of c(s)   subject to   n <= sum of s

found once for every n while tracing (an unbounded knapsack), and looked up by the number of live
rows while running. Only the last tile of a plan may hold rows that are not live.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.types import Array, Step

ROW_OVERHEAD = (
    2**15
    # bytes of state: starting a tile costs about as much as computing rows of this much state (two CPU
    # cores)
)
# a row is taken to cost as much for so many weights as for one byte of state: products with weights
# that are used once a row, against those of a transformer of 64 tokens, which uses them for each
WEIGHTS_PER_BYTE = 512
TILE_BYTES = (
    2**20
)  # of state in the largest tile: beyond, rows leave the cache and do not get cheaper
TILE_ROWS = 256  # at most, in the largest tile
HARDLY = 1 / 4  # of the overhead: a tile of so few rows costs hardly more than one of a single row
SAVING = 0.98  # of the expected cost, at most, for one more size to be worth its copy
APART = 1.25  # a size is worth one more copy of the block where the next costs so much more
MANY = 8  # largest tiles in a batch, from which on two sizes are compiled
REPEATS = 4  # largest tiles; beyond, plans repeat where the batch size is symbolic


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Tile sizes and what a tile of each costs.

    Attributes:
      sizes: rows per tile, falling.
      costs: of one tile of each size, in any one unit (`dx.tune` gives seconds).
    """

    sizes: tuple[int, ...]
    costs: tuple[float, ...]

    def __post_init__(self):
        if not self.sizes or len(self.sizes) != len(self.costs):
            raise ValueError(
                f"`sizes` and `costs` must be as many, at least 1, got {len(self.sizes)} and {len(self.costs)}"
            )
        if min(self.sizes) < 1 or any(
            a <= b for a, b in zip(self.sizes, self.sizes[1:], strict=False)
        ):
            raise ValueError(f"`sizes` must be at least 1 and falling, got {self.sizes}")
        if not all(math.isfinite(c) and c > 0 for c in self.costs):
            raise ValueError(f"`costs` must be positive and finite, got {self.costs}")

    def within(self, batch: Any) -> "Tiling":
        """The tiling without the sizes beyond `batch`, or with that size alone if none is left; as
        it is where the batch size is symbolic.
        """
        if not isinstance(batch, int):
            return self
        kept = [(s, c) for s, c in zip(self.sizes, self.costs, strict=True) if s <= batch]
        return Tiling(*zip(*(kept or [(batch, self.costs[-1])]), strict=True))

    def counts(self, batch: int) -> np.ndarray:
        """How many tiles of each size for n live rows, n = 0..batch: int32 `[batch + 1, sizes]`."""
        return _plans(self.within(batch), batch)[0]

    def rows(self, batch: int) -> np.ndarray:
        """The rows that a block runs, padding included, for n live ones: int64 `[batch + 1]`."""
        return self.counts(batch) @ np.array(self.within(batch).sizes)

    def padding(self, batch: Any) -> int:
        """How far the last tile of a plan may reach beyond the batch, in rows."""
        return int(self.rows(batch).max()) - batch if isinstance(batch, int) else self.sizes[0] - 1

    def ends(self, live: Array, batch: Any) -> Array:
        """Where the tiles of each size end for `live` rows (int32 `[]`, traced): int32 `[sizes]`.

        The tiling must be `within` the batch.
        """
        if isinstance(batch, int):
            return jnp.asarray((self.counts(batch) * self.sizes).cumsum(1), jnp.int32)[live]
        return jnp.cumsum(self.counts_for(live) * jnp.asarray(self.sizes, jnp.int32))

    def counts_for(self, live: Array) -> Array:
        """As a row of `counts` where the batch size is symbolic: int32 `[sizes]` for `live` rows,
        int32 `[]` and traced.

        For many rows plans repeat, with one more of the tiles that are cheapest by the row. A plan
        may reach beyond the batch, by fewer rows than the largest tile has.
        """
        cheapest = min(range(len(self.sizes)), key=lambda k: self.costs[k] / self.sizes[k])
        size, known = self.sizes[cheapest], REPEATS * self.sizes[0]
        table = jnp.asarray(_plans(self, known)[0])
        more = (jnp.maximum(live - known, 0) + size - 1) // size
        return table[live - more * size].at[cheapest].add(more)

    def seconds(self, batch: int) -> np.ndarray:
        """What the plan for n live rows costs, n = 0..batch: float64 `[batch + 1]`, in the unit of
        `costs`.
        """
        return _plans(self.within(batch), batch)[1]


def default_tiling(
    state: Any, batch: int, tile: int | None = None, step: Step | None = None
) -> Tiling:
    """A tiling for rows like those of `state` where nothing has been measured: c(s) = s + a
    constant.

    The constants are those of two CPU cores. An accelerator has others, and `dx.tune` finds them.

    Args:
      state: arrays or shapes `[B, ...]`.
      batch: rows B; where it is symbolic no size is left out for being larger.
      tile: the largest size; None for one whose state fits a core's cache.
      step: whose blocks run; the more weights they have the more a row costs, whatever its state.
    """
    row = max(1, sum(math.prod(a.shape[1:]) * a.dtype.itemsize for a in jax.tree.leaves(state)))
    if tile is None:
        tile = (
            max(8, min(TILE_ROWS, 2 ** round(math.log2(TILE_BYTES / row))))
            if row < TILE_BYTES
            else 8
        )
    overhead = ROW_OVERHEAD / max(row, _weights(step) / WEIGHTS_PER_BYTE)
    static = isinstance(batch, int)
    most = 2 if static and batch >= MANY * tile else 3
    sizes = _default_sizes(min(tile, batch) if static else tile, overhead, most)
    return Tiling(sizes, tuple(s + overhead for s in sizes))


def _weights(step: Step | None) -> int:
    """How many numbers the weights of one block are."""
    if step is None:
        return 0
    weights = jax.eval_shape(step.select, jax.ShapeDtypeStruct((), jnp.int32))
    return sum(math.prod(a.shape) for a in jax.tree.leaves(weights))


def _default_sizes(largest: int, overhead: float, most: int) -> tuple[int, ...]:
    """`most` sizes at most (2 or 3), in about geometric progression: each is one more copy of the
    block in the program.

    The smallest is the one below which a tile hardly gets cheaper. With two sizes it is left out
    where it is much smaller than the largest: the rows that are left at the end cost little of a
    batch of many tiles.
    """
    smallest = max(1, min(largest, 2 ** math.floor(math.log2(max(1.0, overhead * HARDLY)))))
    dearer = (largest + overhead) / (smallest + overhead)
    if dearer < APART:
        return (largest,)
    if dearer < APART**5:
        return largest, smallest
    between = smallest * 2 ** round(math.log2(largest / smallest) / 2)
    return (largest, between, smallest)[:most]


def _exact(tiles: tuple[tuple[int, float], ...], batch: int) -> tuple[np.ndarray, np.ndarray]:
    """The least cost of tiles of together exactly m rows, m = 0..batch, and the index of the last
    tile taken.
    """
    cost, last = np.full(batch + 1, np.inf), np.full(batch + 1, -1)
    cost[0] = 0.0
    for m in range(1, batch + 1):
        options = [(cost[m - s] + c, k) for k, (s, c) in enumerate(tiles) if s <= m]
        cost[m], last[m] = min(options, default=(np.inf, -1))
    return cost, last


@functools.lru_cache(maxsize=256)
def _plans(tiling: Tiling, batch: int) -> tuple[np.ndarray, np.ndarray]:
    tiles = tuple(zip(tiling.sizes, tiling.costs, strict=True))
    cost, last = _exact(tiles, batch + tiling.sizes[0] - 1)
    counts, seconds = np.zeros((batch + 1, len(tiling.sizes)), np.int32), np.zeros(batch + 1)
    for n in range(1, batch + 1):
        m = n + int(np.argmin(cost[n:]))
        seconds[n] = cost[m]
        while m > 0:
            counts[n, last[m]] += 1
            m -= tiling.sizes[last[m]]
    return counts, seconds


def choose_sizes(costs: dict[int, float], batch: int, live: np.ndarray, most: int = 3) -> Tiling:
    """The sizes worth compiling: one after the other, the one that makes the plans for the expected
    row counts cheapest.

    Args:
      costs: of one tile, by its rows.
      batch: rows B.
      live: row counts to expect, int, any shape.
      most: sizes at most; each is one more copy of the block in the program.
    """
    weight = np.bincount(live.reshape(-1), minlength=batch + 1).astype(float)
    expected = lambda sizes: float(weight @ tiling(sizes).seconds(batch))
    tiling = lambda sizes: Tiling(
        tuple(sorted(sizes, reverse=True)), tuple(costs[s] for s in sorted(sizes, reverse=True))
    )
    chosen, best = {min(costs)}, expected({min(costs)})
    while len(chosen) < min(most, len(costs)):
        trials = {size: expected(chosen | {size}) for size in costs if size not in chosen}
        size = min(trials, key=lambda s: trials[s])
        if trials[size] > SAVING * best:
            break
        chosen, best = chosen | {size}, trials[size]
    return tiling(chosen)
