"""Costs against counts by hand, and the small helpers of curves."""

import jax.numpy as jnp
import numpy as np

from dynexit.evaluation.batches import prepared
from dynexit.evaluation.costs import costs_of
from dynexit.evaluation.curves import (
    depth_histogram,
    rank_correlation,
    spread,
    upper_envelope,
)


def costs(experiment, params):
    return costs_of(
        experiment.model,
        params,
        prepared(experiment, jnp.asarray(experiment.test.examples()["inputs"][:16])),
    )


def test_costs_count_embedding_blocks_and_heads(experiment, params):
    """Matrix products alone by hand: embed 2x6, blocks 6x6, 6x3 and 3x3, heads 6x4 or 3x4; a little
    is elementwise.
    """
    found = costs(experiment, params)
    widths = (
        [(6, 6)] * 5
        if isinstance(experiment.model.depth, int)
        else [(6, 6), (6, 6), (6, 3), (3, 3), (3, 3)]
    )
    assert found.embed == 2 * 2 * 6
    for k, (a, b) in enumerate(widths):
        assert 2 * a * b <= found.blocks[k] <= 2 * a * b + 3 * b
        assert abs(found.heads[k] - 2 * b * 4) < 1
    assert found.depths.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(
        found.until[-1], found.embed + found.blocks.sum() + found.heads.sum()
    )
    np.testing.assert_allclose(found.full, found.embed + found.blocks.sum() + found.heads[-1])


def test_histogram():
    assert depth_histogram(np.array([2, 0, 2]), 4).tolist() == [1, 0, 2, 0]


def test_spread_and_envelope():
    values = np.array([5.0, 0.0, 1.0, 10.0, 4.9])
    assert spread(values, 3).tolist() == [1, 0, 3]
    assert spread(np.zeros(4), 3).tolist() == [0]
    assert upper_envelope(
        np.array([3.0, 1.0, 2.0, 1.0]), np.array([0.9, 0.5, 0.4, 0.6])
    ).tolist() == [3, 0]


def test_rank_correlation():
    a = np.array([3, 1, 4, 1, 5, 9, 2, 6])
    assert rank_correlation(a, a**2) == 1.0 and rank_correlation(a, -a) == -1.0
    assert (
        rank_correlation(np.arange(3), np.array([0, 2, 1])) == 0.5
    )  # 1 - 6 sum d^2 / (n (n^2 - 1))
    assert rank_correlation(a, np.zeros(8)) is None
