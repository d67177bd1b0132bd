"""Batches as pure functions of (seed, step, size)."""

import numpy as np
import pytest

from dynexit.core.data import Splits
from dynexit.data.source import batch_indices, from_arrays, from_leaves, part


def source(count=10, split="train"):
    return from_arrays(
        split, np.arange(2 * count, dtype=np.uint8).reshape(count, 2), np.arange(count)
    )


def stream(count, seed, positions):
    """The first `positions` rows, one epoch's shuffle after the other, drawn in the plainest way."""
    rows, epoch = [], 0
    while len(rows) < positions:
        shuffle = np.random.Generator(
            np.random.Philox(key=np.array([seed, epoch], np.uint64))
        ).permutation(count)
        rows += shuffle.tolist()
        epoch += 1
    return rows[:positions]


@pytest.mark.parametrize(("count", "size"), [(10, 3), (10, 5), (7, 10), (4, 13), (1, 3), (6, 6)])
def test_batches_are_consecutive_pieces_of_shuffled_epochs(count, size):
    expected = stream(count, 5, 12 * size)
    for step in range(12):
        np.testing.assert_array_equal(
            batch_indices(count, 5, step, size), expected[step * size : (step + 1) * size]
        )


def test_every_example_comes_once_an_epoch_and_epochs_differ():
    rows = np.concatenate([batch_indices(30, 0, step, 7) for step in range(30)]).reshape(7, 30)
    for epoch in rows:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(30))
    assert len({tuple(epoch) for epoch in rows}) == 7


def test_a_run_resumes_at_any_step_in_any_order():
    train = source(50)
    straight = [train.batch(3, step, 8) for step in range(20)]
    other = source(50)
    for step in (19, 0, 13, 6, 7):
        for name in ("inputs", "labels"):
            np.testing.assert_array_equal(other.batch(3, step, 8)[name], straight[step][name])


def test_seeds_differ_and_inputs_stay_with_their_labels():
    train = source(50)
    one, two = train.batch(0, 0, 20), train.batch(1, 0, 20)
    assert not np.array_equal(one["labels"], two["labels"])
    np.testing.assert_array_equal(one["inputs"][:, 0], 2 * one["labels"])
    assert one["inputs"].dtype == np.uint8 and one["labels"].dtype == np.int32


def test_the_shuffle_is_the_one_that_recorded_runs_used():
    """A change here (also by a newer NumPy) means that recorded runs no longer repeat."""
    assert batch_indices(10, 0, 0, 10).tolist() == [0, 7, 8, 6, 9, 5, 1, 3, 2, 4]


def test_examples_are_the_arrays_in_order_and_cannot_be_written_to():
    inputs, labels = np.arange(6.0)[:, None], np.array([2, 0, 1, 2, 0, 1], np.int64)
    test = from_arrays("test", inputs, labels)
    np.testing.assert_array_equal(test.examples()["inputs"], inputs)
    np.testing.assert_array_equal(test.examples()["labels"], labels)
    assert test.size == 6 and test.split == "test"
    with pytest.raises(ValueError, match="read-only"):
        test.examples()["inputs"][0] = 9
    inputs[0] = 1  # the caller's own array stays writeable
    batch = test.batch(0, 0, 3)
    batch["inputs"][0] = 9  # and a batch is a copy
    assert test.examples()["inputs"].max() == 5


def test_splits_unpack_in_order():
    train, calibration, test = Splits(source(3), source(4, "calibration"), source(5, "test"))
    assert [train.size, calibration.size, test.size] == [3, 4, 5]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (
            ("dev", np.zeros((2, 3)), np.zeros(2, int)),
            ValueError,
            "`split` must be one of train, calibration, test, got 'dev'",
        ),
        (
            ("train", np.zeros((0, 3)), np.zeros(0, int)),
            ValueError,
            "`inputs` of split 'train' must have at least one example",
        ),
        (
            ("train", np.zeros((2, 3)), np.zeros(3, int)),
            ValueError,
            r"`labels` must have shape \[2\].*got \(3,\)",
        ),
        (
            ("train", np.zeros((2, 3)), np.zeros((2, 1), int)),
            ValueError,
            r"`labels` must have shape \[2\].*got \(2, 1\)",
        ),
        (
            ("train", np.zeros((2, 3)), np.zeros(2)),
            TypeError,
            "`labels` must be integers, got float64",
        ),
    ],
)
def test_refusals_name_the_argument(arguments, error, text):
    with pytest.raises(error, match=text):
        from_arrays(*arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0, 0, 0), "`size` must be at least 1, got 0"),
        ((0, -1, 2), "`step` must be at least 0, got -1"),
        ((-3, 0, 2), "`seed` must be at least 0, got -3"),
    ],
)
def test_batch_refuses_what_is_out_of_range(arguments, text):
    with pytest.raises(ValueError, match=text):
        source().batch(*arguments)


def test_hosts_get_disjoint_parts_that_make_up_the_batch():
    arrays = source(40)
    drawn = arrays._replace(batch=lambda *words: arrays.batch(*words))  # as a generated task's
    batch = arrays.batch(0, 2, 12)
    for split in (arrays, drawn):
        parts = [part(split, 0, 2, 12, k, k + 3) for k in (0, 3, 6, 9)]
        for name in batch:
            together = np.concatenate([each[name] for each in parts])
            np.testing.assert_array_equal(together, batch[name])


def test_inputs_may_be_a_dict_of_arrays():
    tokens, mask = np.arange(40).reshape(10, 4), np.arange(10) % 2 == 0
    split = from_arrays("train", {"tokens": tokens, "mask": mask}, np.arange(10))
    batch, plain = split.batch(1, 2, 6), from_arrays("train", tokens, np.arange(10)).batch(1, 2, 6)
    np.testing.assert_array_equal(batch["inputs"]["tokens"], plain["inputs"])
    np.testing.assert_array_equal(batch["inputs"]["mask"], batch["labels"] % 2 == 0)
    rows = part(split, 1, 2, 6, 2, 4)
    np.testing.assert_array_equal(rows["inputs"]["tokens"], batch["inputs"]["tokens"][2:4])
    assert split.examples()["inputs"]["mask"].flags.writeable is False
    with pytest.raises(
        ValueError, match=r"`inputs` of split 'train' must have .* each array as many"
    ):
        from_arrays("train", {"tokens": tokens, "mask": mask[:9]}, np.arange(10))


def test_labels_below_those_ignored_are_refused_or_named():
    inputs, labels = np.zeros((3, 2)), np.array([1, -100, 0])
    with pytest.raises(ValueError, match="-100; `ignore_label`"):
        from_arrays("train", inputs, labels)
    found = from_arrays("train", inputs, labels, ignore_label=-100).examples()["labels"]
    assert found.tolist() == [1, -1, 0]
    assert from_arrays("train", inputs, [1, 2, 0]).examples()["labels"].dtype == np.int32
    bytes_ = from_leaves("train", {"inputs": inputs, "labels": np.array([255, 1, 2], np.uint8)})
    assert bytes_.examples()["labels"].dtype == np.int32
