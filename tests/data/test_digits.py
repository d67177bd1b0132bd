"""scikit-learn's digits, through the records and without them."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from dynexit.data import store
from dynexit.data.split import stratified_order
from dynexit.data.vision.digits import (
    DIGITS_CLASSES,
    DIGITS_MEAN,
    DIGITS_STD,
    RECIPE,
    digits,
)


@pytest.fixture
def folder(tmp_path):
    digits(folder=tmp_path)
    return tmp_path


def test_the_splits_are_the_scans_each_once(folder):
    splits = digits(folder=folder)
    assert [source.split for source in splits] == ["train", "calibration", "test"]
    assert [source.size for source in splits] == [1000, 347, 450]
    images, labels = load_digits(return_X_y=True)
    given = sorted(
        (label, image.astype(np.uint8).tobytes())
        for image, label in zip(images, labels.tolist(), strict=True)
    )
    found = []
    for source in splits:
        batch = source.examples()
        assert (
            batch["inputs"].dtype == np.uint8
            and batch["inputs"].shape[1:] == (8, 8, 1)
            and batch["inputs"].max() == 16
        )
        found += [
            (label, image.tobytes())
            for image, label in zip(batch["inputs"], batch["labels"].tolist(), strict=True)
        ]
    assert sorted(found) == given


def test_the_classes_are_in_proportion(folder):
    for source in digits(folder=folder):
        shares = np.bincount(source.examples()["labels"], minlength=10) / source.size
        np.testing.assert_allclose(shares, 0.1, atol=0.01)
    assert len(DIGITS_CLASSES) == 10


def test_the_split_is_fixed_and_the_records_hold_it(folder):
    one, two, other = digits(folder=folder), digits(folder=folder), digits(1, folder=folder)
    assert (store.home(RECIPE, folder)).is_dir()
    for a, b, c in zip(one, two, other, strict=True):
        np.testing.assert_array_equal(a.examples()["inputs"], b.examples()["inputs"])
        assert not np.array_equal(a.examples()["inputs"], c.examples()["inputs"])


def test_without_a_place_to_write_the_scans_are_the_same(folder, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    for a, b in zip(digits(folder=folder), digits(folder=blocked / "data"), strict=True):
        np.testing.assert_array_equal(a.examples()["inputs"], b.examples()["inputs"])
        np.testing.assert_array_equal(a.examples()["labels"], b.examples()["labels"])


def test_without_tensorflow_datasets_the_scans_are_the_same(folder, tmp_path, monkeypatch):
    wanted = digits(folder=folder)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    for a, b in zip(wanted, digits(folder=tmp_path / "elsewhere"), strict=True):
        np.testing.assert_array_equal(a.examples()["inputs"], b.examples()["inputs"])
    assert not store.home(RECIPE, tmp_path / "elsewhere").exists()


def test_mean_and_deviation_are_those_of_the_training_split(folder):
    inputs = digits(folder=folder).train.examples()["inputs"] / 16.0
    assert inputs.mean() == pytest.approx(DIGITS_MEAN, abs=1e-4) and inputs.std() == pytest.approx(
        DIGITS_STD, abs=1e-4
    )


def test_stratified_order_spreads_uneven_classes():
    labels = np.array([0] * 60 + [1] * 30 + [2] * 10)
    order = stratified_order(labels, 0)
    np.testing.assert_array_equal(np.sort(order), np.arange(100))
    for begin in range(0, 100, 10):
        np.testing.assert_allclose(
            np.bincount(labels[order[begin : begin + 10]], minlength=3), [6, 3, 1], atol=1
        )


def test_importing_the_data_modules_loads_neither_jax_nor_tensorflow_datasets():
    script = (
        "import sys\n"
        "import dynexit.data.source, dynexit.data.vision.digits, dynexit.data.vision.fashion_mnist, dynexit.data.tasks.parity, dynexit.data.prepare\n"
        "print([name for name in ('jax', 'tensorflow_datasets', 'sklearn') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert found.strip() == "[]"
