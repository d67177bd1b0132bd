"""One of several hosts computes its own rows of a generated batch, with the bits of the whole."""

import jax
import numpy as np
import pytest

import dynexit as dx
from dynexit.data.own_rows import OwnRows
from dynexit.data.source import mapped, part
from dynexit.data.tasks import chomsky
from dynexit.data.tasks.addition import addition
from dynexit.data.tasks.graph_algorithms import bellman_ford, floyd_warshall
from dynexit.data.tasks.graphs import erdos_renyi, graphs, grids
from dynexit.data.tasks.mazes import mazes
from dynexit.data.tasks.procedural import generated

SOURCES = {
    "Parity": dx.data.Parity(length=9).build().train,
    "Copying": dx.data.Copying(length=7).build().train,
    "PrefixSums": dx.data.PrefixSums(length=7).build().train,
    "Mazes": dx.data.Mazes(size=5).build().train,
    "Mazes with loops": mazes(5, loops=0.3, examples=4).train,
    "Graphs": graphs(bellman_ford, 5, family=erdos_renyi(0.4), examples=4).train,
    "Graphs, grids": graphs(floyd_warshall, 6, family=grids, hints=True, examples=4).train,
    "Addition": addition(12, examples=4).train,
    "Sudoku": dx.data.Sudoku(examples=8).build().train,
    **{
        name: chomsky.chomsky(task, (5, 9), (10, 11), examples=4).train
        for name, task in chomsky.TASKS.items()
    },
}  # fmt: skip
WHOLE = {"Mazes with loops", "Addition", "Sudoku"}  # rows draw as many numbers as they need
WHOLE |= {name for name, task in chomsky.TASKS.items() if task.draw not in chomsky.BY_ROWS}


def draws_all(source):
    """Whether the draw of the source is called for the whole batch."""
    batches = source.batch
    while hasattr(batches, "source"):
        batches = batches.source.batch
    return not hasattr(batches, "rows")


@pytest.mark.parametrize("name", SOURCES)
def test_own_rows_have_the_bits_of_the_whole_batch(name):
    source = SOURCES[name]
    for step in range(3):
        whole = source.batch(3, step, 8)
        for first, last in ((0, 8), (2, 5), (6, 8)):
            own = part(source, 3, step, 8, first, last)
            assert own.keys() == whole.keys()
            for leaf, of in zip(jax.tree.leaves(own), jax.tree.leaves(whole), strict=True):
                assert leaf.dtype == of.dtype
                np.testing.assert_array_equal(leaf, of[first:last])
    assert draws_all(source) == (name in WHOLE)


def test_a_draw_computes_its_own_rows_alone():
    sizes = []

    def draw(random, size):
        sizes.append(size)
        digits = random.integers(0, 10, size=(size, 3))
        return {"inputs": digits, "labels": digits[:, 0], "steps": np.ones(size, np.int32)}

    for by_rows, wanted in ((True, 2), (False, 8)):
        source = generated(draw, 4, by_rows=by_rows).train
        source = mapped(source, lambda batch: {**batch, "labels": batch["labels"] + 1})
        own = part(source, 0, 1, 8, 4, 6)
        assert sizes[-1] == wanted
        np.testing.assert_array_equal(own["labels"], source.batch(0, 1, 8)["labels"][4:6])


@pytest.mark.parametrize(
    "draw, words",
    [
        (lambda r: r.integers(0, np.array([3, 4])), "`low` and `high` must be numbers"),
        (lambda r: r.random((5, 2)), r"must begin with the 2 rows, got \(5, 2\)"),
        (lambda r: r.permuted(np.zeros((2, 3, 4)), axis=1), r"`x` must be \[rows, n\]"),
    ],
)
def test_draws_that_are_not_by_rows_are_refused(draw, words):
    with pytest.raises(TypeError, match=words):
        draw(OwnRows(np.random.default_rng(0), 8, 2, 4))
    with pytest.raises(AttributeError):
        OwnRows(np.random.default_rng(0), 8, 2, 4).bytes(3)
