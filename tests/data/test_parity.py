"""The parity task against a count by hand."""

import numpy as np
import pytest

from dynexit.data.tasks.parity import PARITY_CLASSES, parity


def label(vector):
    """Parity of the number of +1, one entry at a time."""
    odd = False
    for value in vector:
        if value == 1:
            odd = not odd
    return int(odd)


@pytest.mark.parametrize("length", [1, 2, 8, 15])
def test_labels_are_the_parity_of_the_plus_ones(length):
    for source in parity(length, examples=200):
        batch = source.batch(1, 3, 150)
        assert batch["inputs"].shape == (150, length) and batch["inputs"].dtype == np.float32
        assert batch["labels"].dtype == np.int32
        assert batch["labels"].tolist() == [label(vector) for vector in batch["inputs"]]
        assert set(np.unique(batch["inputs"])) <= {-1.0, 0.0, 1.0}
    assert PARITY_CLASSES[0] == "even"


def test_the_number_of_nonzeros_is_uniform_over_its_range():
    counts = (parity(12, nonzeros=(3, 7)).train.batch(0, 0, 10_000)["inputs"] != 0).sum(axis=1)
    found = np.bincount(counts, minlength=13)
    assert found[:3].sum() == 0 and found[8:].sum() == 0
    np.testing.assert_allclose(found[3:8] / 10_000, 0.2, atol=0.02)  # five standard deviations


def test_places_and_signs_are_even_handed():
    inputs = parity(10).train.batch(0, 0, 20_000)["inputs"]
    np.testing.assert_allclose((inputs != 0).mean(axis=0), 5.5 / 10, atol=0.02)
    np.testing.assert_allclose((inputs == 1).mean(axis=0), 5.5 / 20, atol=0.02)


def test_extrapolation_trains_on_few_and_tests_on_many():
    train, calibration, test = parity(30, nonzeros=(1, 25), test_nonzeros=(26, 30), examples=300)
    nonzeros = lambda batch: (batch["inputs"] != 0).sum(axis=1)
    for source in (train, calibration):
        assert (
            nonzeros(source.examples()).max() <= 25
            and nonzeros(source.batch(0, 0, 500)).max() <= 25
        )
    assert nonzeros(test.examples()).min() >= 26 and nonzeros(test.batch(0, 0, 500)).min() >= 26


def test_training_batches_depend_on_seed_and_step_alone():
    train, again = parity(20).train, parity(20).train
    straight = [train.batch(7, step, 16)["inputs"] for step in range(10)]
    for step in (9, 0, 4):
        np.testing.assert_array_equal(again.batch(7, step, 16)["inputs"], straight[step])
    distinct = {batch.tobytes() for batch in straight} | {
        train.batch(8, step, 16)["inputs"].tobytes() for step in range(10)
    }
    assert len(distinct) == 20


def test_the_splits_share_no_vector_where_there_are_plenty():
    train, calibration, test = parity(64, nonzeros=(20, 64), examples=2000)
    drawn = [source.examples()["inputs"] for source in (train, calibration, test)]
    drawn += [train.batch(0, step, 2000)["inputs"] for step in range(3)]
    assert len({vector.tobytes() for part in drawn for vector in part}) == 6 * 2000


def test_sizes():
    train, calibration, test = parity(8, examples=37)
    assert train.size is None and calibration.size == 37 and test.size == 37
    assert [len(source.examples()["labels"]) for source in (train, calibration, test)] == [
        37,
        37,
        37,
    ]
    assert [source.split for source in (train, calibration, test)] == [
        "train",
        "calibration",
        "test",
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"length": 0}, "`length` must be at least 1, got 0"),
        ({"length": 4, "examples": 0}, "`examples` must be at least 1, got 0"),
        ({"length": 4, "nonzeros": (1, 5)}, r"`nonzeros` must be .* length 4, got \(1, 5\)"),
        ({"length": 4, "test_nonzeros": (3, 2)}, r"`test_nonzeros` must be .* got \(3, 2\)"),
    ],
)
def test_refusals_name_the_argument(arguments, text):
    with pytest.raises(ValueError, match=text):
        parity(**arguments)


def test_batch_refuses_what_is_out_of_range():
    with pytest.raises(ValueError, match="`step` must be at least 0, got -1"):
        parity(4).train.batch(0, -1, 2)
