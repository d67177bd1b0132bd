"""Plans of tiles against brute force, and the sizes that are worth compiling."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.engine.executors.tiling import choose_sizes, default_tiling


def cheapest(tiling, n):
    """The least cost over all multisets of sizes that hold n rows."""
    tiles = list(zip(tiling.sizes, tiling.costs, strict=True))
    counts = itertools.product(*(range(-(-n // s) + 1) for s, _ in tiles))
    sums = ((sum(k * s for k, (s, _) in zip(ks, tiles, strict=True)), ks) for ks in counts)
    return min(
        sum(k * c for k, (_, c) in zip(ks, tiles, strict=True)) for rows, ks in sums if n <= rows
    )


@pytest.mark.parametrize(
    "sizes, costs",
    [((8, 3, 1), (9.0, 4.0, 2.0)), ((4, 2, 1), (2.0, 1.9, 1.8)), ((5, 1), (1.0, 1.0))],
)
@pytest.mark.parametrize("batch", [8, 11])
def test_plans_are_the_cheapest_cover(sizes, costs, batch):
    tiling = dx.Tiling(sizes, costs).within(batch)
    counts, seconds = tiling.counts(batch), tiling.seconds(batch)
    assert counts.shape == (batch + 1, len(tiling.sizes)) and not counts[0].any()
    for n in range(1, batch + 1):
        rows = counts[n] @ np.array(tiling.sizes)
        assert n <= rows == tiling.rows(batch)[n] <= batch + tiling.padding(batch)
        np.testing.assert_allclose(counts[n] @ np.array(tiling.costs), cheapest(tiling, n))
        np.testing.assert_allclose(seconds[n], cheapest(tiling, n))
        used = [s for s, k in zip(tiling.sizes, counts[n], strict=True) if k]
        assert rows - n < min(used), "only the last tile may be ragged"
        ends = np.asarray(tiling.ends(jnp.int32(n), batch))
        np.testing.assert_array_equal(ends, np.cumsum(counts[n] * np.array(tiling.sizes)))


@pytest.mark.parametrize("sizes, rows", [((8,), 16), ((4,), 16), ((16, 4), 16), ((32,), 13)])
def test_a_batch_that_the_sizes_do_not_make_up_gets_padding_rows(sizes, rows):
    tiling = dx.Tiling(sizes, tuple(float(s) for s in sizes)).within(13)
    assert max(tiling.sizes) <= 13 and len(tiling.sizes) == 1
    assert tiling.rows(13)[13] == rows and tiling.padding(13) == rows - 13


def test_the_default_follows_the_size_of_a_row():
    sizes = lambda width, batch, tile=None: (
        default_tiling(jax.ShapeDtypeStruct((batch, width), jnp.float32), batch, tile).sizes
    )
    assert sizes(100, 512) == (256, 64, 16), "a tile of 16 rows costs hardly more than one row"
    assert sizes(64, 128) == (128, 32)
    assert sizes(100, 3) == (3,)
    assert sizes(100, 1) == (1,)
    assert sizes(100, 512, tile=16) == (16,)
    assert sizes(12_288, 32) == (16, 4, 1)
    assert sizes(12_288, 128) == (16, 4), "a batch of many tiles spends little on the last rows"
    assert sizes(12_288, 40, tile=8) == (8, 4, 1)
    assert sizes(10_000_000, 8) == (8, 4, 1)


def test_sizes_are_worth_compiling_only_where_they_save():
    proportional = {1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}
    assert choose_sizes(proportional, 8, np.array([8, 5, 2])).sizes == (1,)
    stepped = {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}
    assert choose_sizes(stepped, 8, np.array([8, 5, 2])).sizes[0] == 8
    dear_rows = {1: 5.0, 2: 5.2, 4: 5.5, 8: 6.0}
    assert choose_sizes(dear_rows, 8, np.full(9, 2), most=2).sizes == (2, 1)


@pytest.mark.parametrize(
    "sizes, costs, message",
    [
        ((), (), "`sizes` and `costs` must have the same length, at least 1, got 0 and 0"),
        ((4, 1), (1.0,), "`sizes` and `costs` must have the same length, at least 1, got 2 and 1"),
        ((1, 4), (1.0, 2.0), r"`sizes` must be at least 1 and decreasing, got \(1, 4\)"),
        ((4, 0), (1.0, 2.0), r"`sizes` must be at least 1 and decreasing, got \(4, 0\)"),
        ((4, 1), (1.0, float("nan")), "`costs` must be positive and finite"),
    ],
)
def test_faulty_tilings_are_refused(sizes, costs, message):
    with pytest.raises(ValueError, match=message):
        dx.Tiling(sizes, costs)


@pytest.mark.parametrize(
    "sizes, costs",
    [((8, 3, 1), (9.0, 4.0, 2.0)), ((4, 2), (3.0, 1.0)), ((5, 1), (1.0, 1.0)), ((4,), (1.0,))],
)
def test_plans_for_a_symbolic_batch_are_the_cheapest_cover_too(sizes, costs):
    tiling = dx.Tiling(sizes, costs)
    counts = np.asarray(
        jax.jit(jax.vmap(tiling.counts_for))(jnp.arange(12 * sizes[0], dtype=jnp.int32))
    )
    assert not counts[0].any()
    for n in range(1, len(counts)):
        rows = counts[n] @ np.array(sizes)
        assert n <= rows < n + sizes[0]
        assert rows - n < min(s for s, k in zip(sizes, counts[n], strict=True) if k), (
            "only the last tile may be ragged"
        )
        np.testing.assert_allclose(counts[n] @ np.array(costs), cheapest(tiling, n))
