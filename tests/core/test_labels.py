"""Rows with one label and with one for each place."""

import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.core.labels import IGNORED, check_labels, exact, share


def test_a_row_is_right_where_every_place_that_counts_is():
    labels = np.array([[1, 0, IGNORED], [1, 1, 0], [IGNORED, IGNORED, IGNORED]])
    prediction = np.array([[1, 0, 7], [1, 1, 1], [3, 3, 3]])
    for kind in (np.asarray, jnp.asarray):
        assert exact(kind(prediction), kind(labels)).tolist() == [True, False, True]
    assert exact(np.array([2, 1]), np.array([2, 0])).tolist() == [True, False]


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
