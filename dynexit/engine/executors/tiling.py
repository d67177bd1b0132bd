"""The tiles of a block: the cheapest multiset of compiled sizes that covers the live rows.

A block is compiled for a few tile sizes. A tile of s rows costs c(s) seconds, which is not
proportional to s: a small tile reads all weights too, and has too little work for several threads.
For n live rows the plan is the multiset of sizes

    argmin sum of c(s)   subject to   n <= sum of s

It is computed once for every n while tracing (an unbounded knapsack), and looked up by the number
of live rows at run time. Only the last tile of a plan may hold padding rows.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.shapes import Array, Float, Int, PyTree
from dynexit.core.types import Step

# bytes of state: a tile's overhead is about the cost of rows with this much state (2 CPU cores)
ROW_OVERHEAD = 2**15
# this number of weights costs a row as much as one byte of state: weights that are used once per
# row, against those of a transformer of 64 tokens, which uses them for each token
WEIGHTS_PER_BYTE = 512
# bytes of state in the largest tile: more rows do not fit the cache and are not cheaper
TILE_BYTES = 2**20
TILE_ROWS = 256  # maximal number of rows in the largest tile
HARDLY = 1 / 4  # of the overhead: a tile of so few rows costs little more than one of a single row
SAVING = 0.98  # one more size is compiled if the expected cost falls to this fraction or below
APART = 1.25  # one more size is compiled if the next larger one costs at least this factor more
MANY = 8  # a batch of at least this many largest tiles has two sizes
REPEATS = 4  # largest tiles, beyond which plans repeat if the batch size is symbolic


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Tile sizes and the cost of a tile of each size.

    Attributes:
      sizes: rows per tile, decreasing.
      costs: cost of one tile of each size, in any common unit (`dx.tune` gives seconds).
    """

    sizes: tuple[int, ...]
    costs: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.sizes or len(self.sizes) != len(self.costs):
            raise ValueError(
                "`sizes` and `costs` must have the same length, at least 1, got "
                f"{len(self.sizes)} and {len(self.costs)}"
            )
        if min(self.sizes) < 1 or any(
            a <= b for a, b in zip(self.sizes, self.sizes[1:], strict=False)
        ):
            raise ValueError(f"`sizes` must be at least 1 and decreasing, got {self.sizes}")
        if not all(math.isfinite(c) and c > 0 for c in self.costs):
            raise ValueError(f"`costs` must be positive and finite, got {self.costs}")

    def within(self, batch: Any) -> "Tiling":
        """The tiling without sizes above `batch`, or with the size `batch` only if none remains.

        The tiling is unchanged if the batch size is symbolic.
        """
        if not isinstance(batch, int):
            return self
        kept = [(s, c) for s, c in zip(self.sizes, self.costs, strict=True) if s <= batch]
        return Tiling(*zip(*(kept or [(batch, self.costs[-1])]), strict=True))

    def counts(self, batch: int) -> Int[np.ndarray, "n sizes"]:
        """Tiles of each size for n live rows, n = 0..batch: int32 `[batch + 1, sizes]`."""
        return _plans(self.within(batch), batch)[0]

    def rows(self, batch: int) -> Int[np.ndarray, "n"]:
        """Rows that a block runs for n live rows, with padding rows: int64 `[batch + 1]`."""
        return self.counts(batch) @ np.array(self.within(batch).sizes)

    def padding(self, batch: Any) -> int:
        """The number of rows by which the last tile of a plan may exceed the batch."""
        return int(self.rows(batch).max()) - batch if isinstance(batch, int) else self.sizes[0] - 1

    def ends(self, live: Int[Array, ""], batch: Any) -> Int[Array, "sizes"]:
        """Where the tiles of each size end for `live` rows (int32 `[]`, traced): int32 `[sizes]`.

        The tiling must be `within` the batch.
        """
        if isinstance(batch, int):
            return jnp.asarray((self.counts(batch) * self.sizes).cumsum(1), jnp.int32)[live]
        return jnp.cumsum(self.counts_for(live) * jnp.asarray(self.sizes, jnp.int32))

    def counts_for(self, live: Int[Array, ""]) -> Int[Array, "sizes"]:
        """A row of `counts` for a symbolic batch size: int32 `[sizes]` for `live` rows.

        `live` is int32 `[]`, traced. For many rows the plans repeat, with more tiles of the size
        that is cheapest per row. A plan may exceed the batch by fewer rows than the largest tile.
        """
        cheapest = min(range(len(self.sizes)), key=lambda k: self.costs[k] / self.sizes[k])
        size, known = self.sizes[cheapest], REPEATS * self.sizes[0]
        table = jnp.asarray(_plans(self, known)[0])
        more = (jnp.maximum(live - known, 0) + size - 1) // size
        return table[live - more * size].at[cheapest].add(more)

    def seconds(self, batch: int) -> Float[np.ndarray, "n"]:
        """Costs of the plans for n live rows, n = 0..batch: float64 `[batch + 1]`."""
        return _plans(self.within(batch), batch)[1]


def default_tiling(
    state: PyTree, batch: Any, tile: int | None = None, step: Step | None = None
) -> Tiling:
    """A tiling without measurements, from the model c(s) = s + a constant.

    The constants are those of two CPU cores. `dx.tune` measures the costs of another device.

    Args:
      state: arrays or shapes `[B, ...]`.
      batch: rows B; if it is symbolic, sizes are not limited by it.
      tile: the largest size; None for a size whose state fits the cache of a core.
      step: the step that runs; a row costs more if its blocks have more weights.
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
    """The number of weights of one block."""
    if step is None:
        return 0
    weights = jax.eval_shape(step.select, jax.ShapeDtypeStruct((), jnp.int32))
    return sum(math.prod(a.shape) for a in jax.tree.leaves(weights))


def _default_sizes(largest: int, overhead: float, most: int) -> tuple[int, ...]:
    """At most `most` sizes (2 or 3), in approximately geometric progression.

    Each size is one more copy of the block in the program. A tile below the smallest size is hardly
    cheaper. With two sizes the smallest is omitted if it is much smaller than the largest: in a
    batch of many tiles the last rows cost little.
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
    """The least cost of tiles of exactly m rows in total, and their last tile, m = 0..batch."""
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


def choose_sizes(
    costs: dict[int, float], batch: int, live: Int[np.ndarray, "..."], most: int = 3
) -> Tiling:
    """Chooses tile sizes greedily by the expected cost of the plans.

    Args:
      costs: cost of one tile by its number of rows.
      batch: rows B.
      live: expected numbers of live rows, int, any shape.
      most: the maximal number of sizes; each is one more copy of the block in the program.
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
