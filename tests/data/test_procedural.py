"""What generated tasks share: streams that depend on (seed, step) and split alone."""

import functools

import numpy as np
import pytest

from dynexit.data.source import from_leaves, part
from dynexit.data.tasks.addition import addition
from dynexit.data.tasks.chomsky import TASKS, chomsky
from dynexit.data.tasks.copying import copying
from dynexit.data.tasks.graph_algorithms import bellman_ford
from dynexit.data.tasks.graphs import graphs, grids
from dynexit.data.tasks.mazes import mazes
from dynexit.data.tasks.parity import parity
from dynexit.data.tasks.prefix_sums import prefix_sums
from dynexit.data.tasks.procedural import at_least, generated, ordered

TASK_SPLITS = {
    "parity": lambda: parity(40, examples=30),
    "prefix_sums": lambda: prefix_sums(40, examples=30),
    "mazes": lambda: mazes(9, examples=30),
    "mazes with loops": lambda: mazes(9, loops=0.2, examples=30),
    "addition": lambda: addition(40, examples=30),
    "addition with carries": lambda: addition(40, carries=(2, 9), examples=30),
    "copying": lambda: copying(30, examples=30),
    "chomsky": lambda: chomsky(TASKS["solve_equation"], (20, 40), (41, 60), examples=30),
    "graphs": lambda: graphs(bellman_ford, 12, family=grids, hints=True, examples=30),
}


def same(one, other):
    assert one.keys() == other.keys()
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("task", TASK_SPLITS)
def test_batches_depend_on_seed_and_step_alone_and_splits_differ(task):
    (train, calibration, test), again = TASK_SPLITS[task](), TASK_SPLITS[task]()
    straight = [train.batch(7, step, 16) for step in range(4)]
    for step in (3, 0, 2):
        assert same(again.train.batch(7, step, 16), straight[step])
    for one, other in ((train, again.train), (calibration, again.calibration), (test, again.test)):
        assert same(one.examples(), other.examples())
        assert same(one.batch(1, 2, 8), other.batch(1, 2, 8))
    parts = [
        *straight,
        train.batch(8, 0, 16),
        *(source.examples() for source in (train, calibration, test)),
    ]
    assert len({part["inputs"].tobytes() for part in parts}) == len(parts)


@pytest.mark.parametrize("task", TASK_SPLITS)
def test_every_batch_says_how_many_steps_it_takes(task):
    for source in TASK_SPLITS[task]():
        batch, examples = source.batch(0, 0, 9), source.examples()
        for leaves, rows in ((batch, 9), (examples, 30)):
            assert {"inputs", "labels", "steps"} <= leaves.keys()
            assert {len(leaf) for leaf in leaves.values()} == {rows}
            assert (
                leaves["steps"].dtype == np.int32
                and leaves["steps"].shape == (rows,)
                and leaves["steps"].min() >= 1
            )
            assert leaves["labels"].dtype == np.int32
        assert {name: leaf.dtype for name, leaf in batch.items()} == {
            name: leaf.dtype for name, leaf in examples.items()
        }
    assert part(TASK_SPLITS[task]().train, 0, 0, 8, 4, 8)["steps"].shape == (4,)


def test_parity_draws_what_it_drew_before_the_tasks_were_given_one_generator():
    """The recipe of the first recorded runs, written out: Philox by (seed, step), the split in the
    last word of the counter.
    """
    for split, (stream, seed, step) in {
        "train": (1, 5, 3),
        "calibration": (3, 0, 0),
        "test": (4, 0, 0),
    }.items():
        bits = np.random.Philox(
            key=np.array([seed, step], np.uint64), counter=np.array([0, 0, 0, stream], np.uint64)
        )
        random = np.random.Generator(bits)
        count = random.integers(2, 8, size=(50, 1))
        signs = random.integers(0, 2, size=(50, 9), dtype=np.int8) * 2 - 1
        places = random.random((50, 9), dtype=np.float32).argsort(axis=1)
        expected = np.zeros((50, 9), np.float32)
        for row in range(50):
            for rank in range(count[row, 0]):
                expected[row, places[row, rank]] = signs[row, rank]
        splits = parity(9, nonzeros=(2, 7), examples=50)
        found = (
            splits.train.batch(5, 3, 50) if split == "train" else getattr(splits, split).examples()
        )
        np.testing.assert_array_equal(found["inputs"], expected)
        np.testing.assert_array_equal(found["steps"], (expected != 0).sum(axis=1))


def test_fixed_sets_are_drawn_once_and_only_when_asked_for():
    calls = []

    def draw(random, size, mark):
        calls.append(mark)
        return {
            "inputs": random.random((size, 2)),
            "labels": np.zeros(size, np.int32),
            "steps": np.ones(size, np.int32),
        }

    make = lambda mark: functools.partial(draw, mark=mark)
    train, calibration, test = generated(make("train"), 5, test_draw=make("test"))
    assert calls == []
    for _ in range(3):
        test.examples(), test.batch(0, 1, 2)
    assert calls == ["test"]
    assert [train.size, calibration.size, test.size] == [None, 5, 5]
    np.testing.assert_array_equal(
        np.sort(test.batch(0, 0, 5)["inputs"][:, 0]), np.sort(test.examples()["inputs"][:, 0])
    )


def test_leaves_stay_together():
    leaves = {
        "inputs": np.arange(12).reshape(6, 2),
        "labels": np.arange(18).reshape(6, 3),
        "steps": np.arange(6),
    }
    source = from_leaves("test", leaves)
    for step in range(4):
        for inputs, labels, steps in zip(*source.batch(0, step, 4).values(), strict=True):
            assert inputs.tolist() == [2 * steps, 2 * steps + 1] and labels[0] == 3 * steps
    with pytest.raises(ValueError, match="read-only"):
        source.examples()["steps"][0] = 9


@pytest.mark.parametrize(
    ("leaves", "text"),
    [
        ({"inputs": np.zeros(3)}, "`leaves` must have `inputs` and `labels`, got inputs"),
        (
            {"inputs": np.zeros((3, 2)), "labels": np.zeros((2, 2))},
            r"same number of examples.*\(3, 2\).*\(2, 2\)",
        ),
        ({"inputs": np.zeros((0, 2)), "labels": np.zeros(0)}, "at least one"),
        ({"inputs": np.float32(1), "labels": np.float32(1)}, "at least one"),
    ],
)
def test_leaves_that_are_refused(leaves, text):
    with pytest.raises(ValueError, match=text):
        from_leaves("train", leaves)
    with pytest.raises(ValueError, match="`split` must be one of"):
        from_leaves("dev", leaves)


def test_refusals_name_the_argument():
    with pytest.raises(ValueError, match="`two` must be at least 1, got 0"):
        at_least(1, one=1, two=0)
    with pytest.raises(
        ValueError, match=r"`pair` must be \(low, high\) with 1 <= low <= high, got \(3, 2\)"
    ):
        ordered("pair", (3, 2), 1, None)
    with pytest.raises(ValueError, match=r"with 0 <= low <= high <= room 5, got \(2, 6\)"):
        ordered("pair", (2, 6), 0, 5, "room ")
    train = prefix_sums(3).train
    for arguments, text in (
        ((-1, 0, 2), "`seed`"),
        ((0, -1, 2), "`step`"),
        ((0, 0, 0), "`size` must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=text):
            train.batch(*arguments)
