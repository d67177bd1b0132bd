"""Prefix sums against a count, one bit at a time."""

import numpy as np
import pytest

from dynexit.data.tasks.prefix_sums import prefix_sums


@pytest.mark.parametrize("length", [1, 2, 16, 33])
def test_labels_are_the_parity_so_far(length):
    for source in prefix_sums(length, examples=50):
        batch = source.batch(1, 3, 40)
        assert batch["inputs"].shape == (40, length, 1) and batch["inputs"].dtype == np.float32
        assert set(np.unique(batch["inputs"])) <= {-0.5, 0.5}
        for vector, labels in zip(batch["inputs"][..., 0], batch["labels"], strict=True):
            odd, expected = False, []
            for value in vector:
                odd = odd != (value > 0)
                expected.append(int(odd))
            assert labels.tolist() == expected
        assert batch["steps"].tolist() == [length] * 40


def test_bits_are_even_and_the_test_is_longer():
    train, calibration, test = prefix_sums(32, test_length=100, examples=20)
    np.testing.assert_allclose(
        train.batch(0, 0, 5000)["inputs"].mean(axis=0), 0, atol=0.035
    )  # five standard deviations
    assert train.examples()["labels"].shape == calibration.examples()["labels"].shape == (20, 32)
    assert (
        test.examples()["labels"].shape == (20, 100)
        and test.examples()["steps"].tolist() == [100] * 20
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"length": 0}, "`length` must be at least 1, got 0"),
        ({"length": 3, "test_length": -1}, "`test_length` must be at least 1, got -1"),
        ({"length": 3, "examples": 0}, "`examples` must be at least 1, got 0"),
    ],
)
def test_refusals_name_the_argument(arguments, text):
    with pytest.raises(ValueError, match=text):
        prefix_sums(**arguments)
