"""Fashion-MNIST: its raw files, its splits, and the command that prepares it, without a network."""

import gzip
import hashlib
import http.server
import socket
import threading
import time

import numpy as np
import pytest

from dynexit.data import prepare as preparing
from dynexit.data import store
from dynexit.data.prepare import prepare
from dynexit.data.vision import fashion_mnist as module
from dynexit.data.vision.fashion_mnist import fashion_mnist, has_raw, hold_out, parse_idx, read_raw


def idx(values):
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    return header + values.tobytes()


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """Four small files in the form of the real ones: two of them compressed, two plain."""
    random = np.random.default_rng(0)
    folder = tmp_path / "raw"
    folder.mkdir()
    checksums = {}
    for name, count in (("train", 40), ("t10k", 12)):
        images = idx(random.integers(0, 256, (count, 28, 28)).astype(np.uint8))
        labels = idx(random.integers(0, 10, count).astype(np.uint8))
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images, mtime=0))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(labels)
        checksums[f"{name}-images-idx3-ubyte"] = hashlib.sha256(images).hexdigest()
        checksums[f"{name}-labels-idx1-ubyte"] = hashlib.sha256(labels).hexdigest()
    monkeypatch.setattr(module, "RAW", checksums)
    monkeypatch.setattr(module, "CALIBRATION", 15)
    monkeypatch.setattr(module, "DEBIAN", tmp_path / "nowhere")
    return folder


def test_prepared_raw_files_are_loaded_and_split(raw, tmp_path):
    place = prepare("fashion_mnist", raw, tmp_path / "data", progress=False)
    assert place == tmp_path / "data" / "dynexit_fashion_mnist" / "1.0.0"
    splits = fashion_mnist(tmp_path / "data")
    assert [(source.split, source.size) for source in splits] == [
        ("train", 25),
        ("calibration", 15),
        ("test", 12),
    ]
    published = read_raw(raw)
    rows = {image.tobytes(): label for image, label in zip(*published["train"], strict=True)}
    found = [source.examples() for source in splits[:2]]
    images = np.concatenate([part["inputs"] for part in found])
    assert images.dtype == np.uint8 and images.shape == (40, 28, 28, 1)
    assert {image.tobytes() for image in images} == rows.keys()
    assert [rows[image.tobytes()] for image in images] == np.concatenate(
        [part["labels"] for part in found]
    ).tolist()
    np.testing.assert_array_equal(splits.test.examples()["inputs"], published["test"][0])


def test_the_calibration_rows_are_those_that_recorded_runs_used():
    """A change here (also by a newer NumPy) means that published numbers no longer repeat."""
    rows = np.arange(60_000)
    train, calibration, _ = hold_out((rows, rows), (rows, rows), 5000)
    held = calibration.examples()["inputs"]
    np.testing.assert_array_equal(np.sort(np.concatenate([train.examples()["inputs"], held])), rows)
    assert held[:5].tolist() == [15, 19, 36, 41, 50]


@pytest.mark.parametrize("calibration", [0, 60])
def test_hold_out_refuses_to_hold_out_nothing_or_everything(calibration):
    rows = np.arange(60)
    with pytest.raises(ValueError, match=r"`calibration` must lie in 1\.\.59"):
        hold_out((rows, rows), (rows, rows), calibration)


def test_parse_idx():
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(parse_idx(idx(values)), values)
    with pytest.raises(ValueError, match=r"must hold \(2, 3, 4\) = 24 values, got 23"):
        parse_idx(idx(values)[:-1])
    with pytest.raises(
        ValueError, match="must be an idx file of unsigned bytes, got the first bytes 50 4b 03 04"
    ):
        parse_idx(b"PK\x03\x04")


def test_unprepared_data_is_refused_at_once_with_cause_and_cure(tmp_path):
    start = time.perf_counter()
    with pytest.raises(store.DataNotPrepared) as error:
        fashion_mnist(tmp_path)
    assert time.perf_counter() - start < 1.0
    for part in (
        "does not exist",
        "dynexit data prepare fashion_mnist",
        "apt install dataset-fashion-mnist",
        "--raw FOLDER",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte"])
def test_damaged_and_missing_raw_files_are_named(raw, tmp_path, name):
    content = bytearray((raw / name).read_bytes())
    content[len(content) // 2] ^= 8
    (raw / name).write_bytes(content)
    with pytest.raises(
        store.DataDamaged,
        match=rf"{name} is damaged.*apt install --reinstall dataset-fashion-mnist",
    ):
        prepare("fashion_mnist", raw, tmp_path / "data")
    (raw / name).unlink()
    assert not has_raw(raw)
    with pytest.raises(
        store.DataNotPrepared, match=rf"{raw} has neither {name.removesuffix('.gz')}"
    ):
        prepare("fashion_mnist", raw, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_the_files_of_the_debian_package_are_found(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DEBIAN", raw)
    prepare("fashion_mnist", folder=tmp_path / "data", progress=False)
    assert fashion_mnist(tmp_path / "data").test.size == 12


@pytest.fixture
def server(raw, monkeypatch):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=raw)

        def log_message(self, *arguments):
            pass

    for path in raw.glob("*-ubyte"):
        (raw / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        monkeypatch.setattr(preparing, "URL", f"http://127.0.0.1:{listening.server_port}/")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield listening
        listening.shutdown()
        thread.join()


def test_a_download_is_announced_and_checked(server, raw, tmp_path, capfd):
    prepare("fashion_mnist", folder=tmp_path / "data", progress=False)
    assert f"downloading 30 MB from {preparing.URL}" in capfd.readouterr().err
    assert fashion_mnist(tmp_path / "data").train.size == 25
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        store.DataNotPrepared,
        match=r"t10k-labels-idx1-ubyte.gz cannot be downloaded: .*404.*--raw FOLDER",
    ):
        prepare("fashion_mnist", folder=tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("answers", ["refuses", "is silent"])
def test_without_a_network_it_fails_in_seconds(raw, tmp_path, monkeypatch, answers):
    monkeypatch.setattr(preparing, "PATIENCE", 0.5)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if answers == "is silent":
            silent.listen()
        monkeypatch.setattr(preparing, "URL", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        start = time.perf_counter()
        with pytest.raises(
            store.DataNotPrepared,
            match=r"cannot be reached: .*apt install dataset-fashion-mnist.*--raw FOLDER",
        ):
            prepare("fashion_mnist", folder=tmp_path / "data")
        assert time.perf_counter() - start < 5.0


def test_digits_can_be_prepared_too(tmp_path):
    assert prepare("digits", folder=tmp_path, progress=False).is_dir()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("mnist",), "`name` must be one of digits, fashion_mnist, got 'mnist'"),
        (("digits", "there"), "`raw` must not be given for digits.* got 'there'"),
    ],
)
def test_prepare_refuses(arguments, text):
    with pytest.raises(ValueError, match=text):
        prepare(*arguments)


@pytest.mark.skipif(
    not has_raw(module.DEBIAN), reason="Debian's package dataset-fashion-mnist is not installed"
)
def test_the_published_files_are_what_the_checksums_say():
    published = read_raw(module.DEBIAN)
    (images, labels), (test_images, test_labels) = published["train"], published["test"]
    assert images.shape == (60_000, 28, 28, 1) and test_images.shape == (10_000, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(labels), np.full(10, 6000))
    np.testing.assert_array_equal(np.bincount(test_labels), np.full(10, 1000))
    train, calibration, _ = hold_out(published["train"], published["test"], module.CALIBRATION)
    assert (train.size, calibration.size) == (55_000, 5_000)
    inputs = train.examples()["inputs"]
    assert inputs.mean() / 255 == pytest.approx(module.FASHION_MNIST_MEAN, abs=1e-4)
    assert inputs.std() / 255 == pytest.approx(module.FASHION_MNIST_STD, abs=1e-4)
