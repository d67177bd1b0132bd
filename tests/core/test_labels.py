"""Rows with one label and with one for each place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.core.labels import (
    IGNORED,
    as_labels,
    check_labels,
    exact,
    places_counted,
    rows_counted,
    share,
)


def test_a_row_is_right_where_every_place_that_counts_is():
    labels = np.array([[1, 0, IGNORED], [1, 1, 0], [IGNORED, IGNORED, IGNORED]])
    prediction = np.array([[1, 0, 7], [1, 1, 1], [3, 3, 3]])
    for kind in (np.asarray, jnp.asarray):
        assert exact(kind(prediction), kind(labels)).tolist() == [True, False, False]
    assert exact(np.array([2, 1]), np.array([2, 0])).tolist() == [True, False]


def test_rows_and_places_that_count():
    labels = np.array([[1, IGNORED], [IGNORED, IGNORED], [0, 0]])
    for kind in (np.asarray, jnp.asarray):
        assert rows_counted(kind(labels)).tolist() == [True, False, True]
        assert places_counted(kind(labels)).tolist()[0] == [True, False]
        assert rows_counted(kind(np.array([255, 0], np.uint8))).tolist() == [True, True]
        assert rows_counted(kind(np.array([0.5, np.nan], np.float32))).tolist() == [True, False]


def test_lists_of_classes_are_taken_and_other_types_refused_by_name():
    assert exact([1, 0], [1, 2]).tolist() == [True, False]
    assert share([[1, 0]], [[1, 1]]).tolist() == [0.5]
    with pytest.raises(TypeError, match="`prediction` must be integers, got float64"):
        exact(np.zeros(2), np.zeros(2, int))
    with pytest.raises(TypeError, match="`labels` must be integers, got float64"):
        exact(np.zeros(2, int), [0.5, 1.0])


def test_the_share_of_a_row_counts_its_places():
    labels = np.array([[1, 0, IGNORED], [1, 1, 0], [IGNORED, IGNORED, IGNORED]])
    prediction = np.array([[1, 1, IGNORED], [1, 1, 0], [3, 3, 3]])
    for kind in (np.asarray, jnp.asarray):
        assert share(kind(prediction), kind(labels)).tolist() == [0.5, 1.0, 0.0]


def test_labels_that_are_no_class_are_refused():
    check_labels(np.array([[0, IGNORED], [2, 1]]), 3, "train")
    check_labels(np.array([0.5]), 3, "train")
    for wrong in (3, -2, -100):
        with pytest.raises(
            ValueError,
            match=f"labels of `train` must lie in 0..2 .3 classes., or be -1 .* got {wrong}",
        ):
            check_labels(np.array([0, wrong]), 3, "train")


def test_shapes_must_agree():
    with pytest.raises(
        ValueError, match=r"`prediction` must have the shape of `labels`, got \(2,\) and \(2, 3\)"
    ):
        exact(np.zeros(2, int), np.zeros((2, 3), int))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_the_last_class_of_a_narrow_type_is_a_class(kind, dtype):
    last = min(np.iinfo(dtype).max, 2**31 - 1)
    labels = kind(np.array([last, 0], dtype))
    assert as_labels(labels).dtype == np.int32 and as_labels(labels).tolist() == [last, 0]
    assert exact(kind(np.zeros(2, np.int32)), labels).tolist() == [False, True]
    assert share(kind(np.zeros((1, 2), np.int32)), labels[None]).tolist() == [0.5]


def test_an_ignored_label_of_another_kind():
    labels = [3, -100, 0]
    for found in (
        as_labels(labels, -100),
        as_labels(np.array(labels, np.int64), -100),
        jax.jit(lambda y: as_labels(y, -100))(jnp.array(labels)),
    ):
        assert found.tolist() == [3, IGNORED, 0] and found.dtype == np.int32
    assert as_labels(jnp.array([255, 1], jnp.uint8), 255).tolist() == [IGNORED, 1]


def test_what_is_no_label_is_refused():
    with pytest.raises(TypeError, match="`labels` must be integers, got float64"):
        as_labels(np.zeros(2))
    with pytest.raises(TypeError, match="`ignore_label` must be an integer"):
        as_labels(np.zeros(2, int), 0.5)
    with pytest.raises(ValueError, match="range of int32"):
        as_labels(np.array([2**40]))
    with pytest.raises(ValueError, match="-100; `ignore_label`"):
        check_labels(np.array([-100]), 0, "train")
