"""Phases: the dynamic programme against all cuts there are, and the similarity against loops."""

import itertools

import numpy as np
import pytest

from dynexit.evaluation.phases import _heaviest_cut, phases, phases_by_cut, similarity


def blocks(*counts, inside=0.95, outside=0.3):
    """S of layers that are alike within their phases."""
    names = np.repeat(np.arange(len(counts)), counts)
    S = np.where(names[:, None] == names[None], inside, outside)
    np.fill_diagonal(S, 1.0)
    return S


def worth(S, cuts):
    return sum(S[i:j, i:j].sum() / (j - i) for i, j in itertools.pairwise(cuts))


def test_phases_that_are_there_are_found():
    S = blocks(7, 3, 2)
    found = phases(S, 3)
    assert found.cuts == (0, 7, 10, 12) and found.counts == (7, 3, 2)
    assert found.score == pytest.approx(worth(S, found.cuts))
    assert phases(S, 1).cuts == (0, 12) and phases(S, 12).counts == (1,) * 12


@pytest.mark.parametrize("layers, count", [(5, 2), (8, 3), (10, 4), (6, 6)])
def test_no_cut_is_better(layers, count):
    v = np.random.default_rng(layers).normal(size=(layers, 3)).cumsum(0)
    S = similarity(list(v[:, None]))
    all_cuts = [
        (0, *inner, layers) for inner in itertools.combinations(range(1, layers), count - 1)
    ]
    best = max(all_cuts, key=lambda cuts: worth(S, cuts))
    assert phases(S, count).cuts == best and phases(S, count).score == pytest.approx(worth(S, best))
    assert len(all_cuts) == 1 or min(worth(S, cuts) for cuts in all_cuts) < worth(S, best) - 1e-3


def test_the_maximal_cut_finds_the_same_phases():
    S = blocks(7, 3, 2)
    assert phases_by_cut(S, 3).cuts == (0, 7, 10, 12) and phases_by_cut(
        S, 3
    ).score == pytest.approx(phases(S, 3).score)
    assert phases_by_cut(S, 2).cuts == (0, 7, 12) and phases_by_cut(S, 1).cuts == (0, 12)


@pytest.mark.parametrize("seed", range(4))
def test_a_cut_is_the_heaviest_there_is(seed):
    v = np.random.default_rng(seed).normal(size=(7, 2)).cumsum(0)
    W = 1 - similarity(list(v[:, None]))
    weight, side = _heaviest_cut(W)
    every = [set(c) for size in range(2, 6) for c in itertools.combinations(range(7), size)]
    cut = lambda part: sum(W[i, j] for i in part for j in range(7) if j not in part)
    assert (
        weight
        == pytest.approx(max(map(cut, every)))
        == pytest.approx(cut(set(np.flatnonzero(side))))
    )


def test_similarity_is_its_loop():
    states = {f"block{k}": np.random.default_rng(k).normal(size=(4, 5, 3)) for k in range(3)}
    S = similarity(states)
    for (l, a), (m, b) in itertools.product(enumerate(states.values()), repeat=2):
        cosines = [
            x.mean(0) @ y.mean(0) / np.linalg.norm(x.mean(0)) / np.linalg.norm(y.mean(0))
            for x, y in zip(a, b, strict=True)
        ]
        np.testing.assert_allclose(S[l, m], np.mean(cosines))
    first = similarity(states, summary=lambda s: s[:, 0])
    assert not np.allclose(first, S) and np.allclose(np.diag(first), 1)


@pytest.mark.parametrize(
    "call, kind, text",
    [
        (
            lambda: phases(np.ones((2, 3)), 1),
            ValueError,
            "`similarities` must have shape [L, L] and hold no NaN, got shape (2, 3)",
        ),
        (lambda: phases(np.full((2, 2), np.nan), 1), ValueError, "hold no NaN"),
        (
            lambda: phases(np.ones((2, 2)), 3),
            ValueError,
            "`count` must be at most the 2 layers, got 3",
        ),
        (lambda: phases(np.ones((2, 2)), 1.0), TypeError, "`count` must be a Python integer"),
        (
            lambda: phases_by_cut(np.ones((2, 3)), 1),
            ValueError,
            "`similarities` must have shape [L, L]",
        ),
        (
            lambda: phases_by_cut(np.ones((21, 21)), 2),
            ValueError,
            "`similarities` must be of at most 20 layers",
        ),
        (
            lambda: phases_by_cut(np.ones((6, 6)), 4),
            ValueError,
            "`count` must be at most 3, two layers a phase, got 4",
        ),
        (
            lambda: phases_by_cut(blocks(5, 3), 4),
            ValueError,
            "`count` of 4 phases cannot be reached",
        ),
        (
            lambda: phases_by_cut(np.kron(np.ones((3, 3)), np.eye(2)), 2),
            ValueError,
            "phases are not contiguous: [[0, 2, 4], [1, 3, 5]]",
        ),
        (
            lambda: similarity([]),
            ValueError,
            "`states` must have one summary of shape [B, n] a layer, got shapes []",
        ),
    ],
)
def test_refusals(call, kind, text):
    with pytest.raises(kind) as error:
        call()
    assert text in str(error.value)
