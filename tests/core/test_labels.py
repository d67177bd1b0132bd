"""Rows with one label and with one for each place."""

import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.core.labels import IGNORED, check_labels, exact, places_counted, rows_counted, share


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


def test_arrays_of_classes_are_asked_for_by_name():
    with pytest.raises(TypeError, match="`labels` must be an array, got list"):
        exact(np.array([1, 0]), [1, 0])
    with pytest.raises(TypeError, match="`labels` must be integers, got float64"):
        exact(np.array([1, 0]), np.array([1.0, 0.0]))


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
