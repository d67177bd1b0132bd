"""Prepared data: what is written is read, and nothing half-made or damaged is taken for whole."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from dynexit.data import store

RECIPE = store.Recipe(
    name="toys",
    shape=(3, 2, 1),
    classes=("a", "b"),
    description="Toys.",
    homepage="https://example.org",
    cure="Run it.",
)


def toys(seed=0):
    random = np.random.default_rng(seed)
    draw = lambda n: (
        random.integers(0, 256, (n, 3, 2, 1)).astype(np.uint8),
        random.integers(0, 2, n).astype(np.int32),
    )
    return {"train": draw(50), "test": draw(20)}


def check_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for split in wanted:
        for a, b in zip(found[split], wanted[split], strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype


@pytest.fixture
def prepared(tmp_path):
    return store.prepare(RECIPE, toys(), tmp_path, progress=False)


def test_what_is_prepared_is_read_in_order_from_both_forms(prepared, tmp_path, capfd):
    assert prepared == tmp_path / "dynexit_toys" / "1.0.0"
    check_equal(store.load(RECIPE, tmp_path), toys())
    check_equal(store.read_records(RECIPE, tmp_path), toys())
    assert "download" not in capfd.readouterr().out.lower()


def test_the_builder_gives_single_records(prepared, tmp_path):
    rows = store.builder(RECIPE, tmp_path).as_data_source("test")
    images, labels = toys()["test"]
    assert len(rows) == 20
    np.testing.assert_array_equal(rows[7]["image"], images[7])
    assert rows[7]["label"] == labels[7]


def test_preparing_again_leaves_intact_data_alone_and_replaces_other(prepared, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in prepared.iterdir()}
    store.prepare(RECIPE, toys(), tmp_path, progress=False)
    assert {path: path.stat().st_mtime_ns for path in prepared.iterdir()} == before
    store.prepare(RECIPE, toys(seed=1), tmp_path, progress=False)
    check_equal(store.load(RECIPE, tmp_path), toys(seed=1))
    check_equal(store.read_records(RECIPE, tmp_path), toys(seed=1))


def test_lost_arrays_are_decoded_from_the_records_once(prepared, tmp_path):
    (arrays,) = prepared.glob("arrays-*.npz")
    arrays.unlink()
    check_equal(store.load(RECIPE, tmp_path), toys())
    assert arrays.is_file()


def test_unprepared_data_is_refused_with_cause_and_cure(tmp_path):
    with pytest.raises(
        store.DataNotPrepared,
        match=r"toys is not prepared: .*dynexit_toys.* does not exist. Run it.",
    ):
        store.load(RECIPE, tmp_path)


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_any_flipped_bit_in_the_arrays_is_found(prepared, tmp_path):
    (arrays,) = prepared.glob("arrays-*.npz")
    for bit in np.random.default_rng(0).integers(0, 8 * arrays.stat().st_size, 50).tolist():
        flip(arrays, bit)
        with pytest.raises(
            store.DataDamaged, match=rf"{arrays.name} is damaged.*dynexit data prepare toys"
        ):
            store.load(RECIPE, tmp_path)
        flip(arrays, bit)
    check_equal(store.load(RECIPE, tmp_path), toys())


def test_cut_arrays_are_found_and_prepare_mends_them(prepared, tmp_path):
    (arrays,) = prepared.glob("arrays-*.npz")
    os.truncate(arrays, arrays.stat().st_size // 2)
    with pytest.raises(store.DataDamaged, match=arrays.name):
        store.load(RECIPE, tmp_path)
    store.prepare(RECIPE, toys(), tmp_path, progress=False)
    check_equal(store.load(RECIPE, tmp_path), toys())


@pytest.mark.parametrize("damage", ["cut", "gone", "info"])
def test_damaged_records_are_found_and_prepare_mends_them(prepared, tmp_path, damage):
    for arrays in prepared.glob("arrays-*.npz"):
        arrays.unlink()
    records = next(prepared.glob("*train.array_record*"))
    if damage == "cut":
        os.truncate(records, records.stat().st_size // 2)
    elif damage == "gone":
        records.unlink()
    else:
        os.truncate(prepared / "dataset_info.json", 100)
    with pytest.raises(store.DataDamaged, match=r"1\.0\.0 is damaged.*dynexit data prepare toys"):
        store.load(RECIPE, tmp_path)
    store.prepare(RECIPE, toys(), tmp_path, progress=False)
    check_equal(store.load(RECIPE, tmp_path), toys())


def test_a_flipped_bit_in_a_record_never_passes_for_data(prepared, tmp_path):
    records = next(prepared.glob("*train.array_record*"))
    found = 0
    for bit in np.random.default_rng(1).integers(0, 8 * records.stat().st_size, 12).tolist():
        flip(records, bit)
        try:
            check_equal(
                store.read_records(RECIPE, tmp_path), toys()
            )  # a bit of the padding between chunks carries nothing
        except store.DataDamaged:
            found += 1
        flip(records, bit)
    check_equal(store.read_records(RECIPE, tmp_path), toys())
    assert found > 0


class Failing:
    """Images of which the sixth cannot be had."""

    def __init__(self, images, fail):
        self.images, self.fail, self.nbytes = images, fail, images.nbytes

    def __len__(self):
        return len(self.images)

    def __getitem__(self, row):
        return self.images[row] if row < 5 else self.fail()


@pytest.mark.parametrize(
    "full",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError("write() failed: No space left on device; writing x at byte 9"),
    ],
)
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path, full):
    def fail():
        raise full

    arrays = {"train": (Failing(toys()["train"][0], fail), toys()["train"][1])}
    with pytest.raises(
        OSError,
        match=r"cannot prepare toys in .*: No space left on device. Nothing was kept; .*DYNEXIT_DATA",
    ) as error:
        store.prepare(RECIPE, arrays, tmp_path, progress=False)
    assert error.value.errno == errno.ENOSPC
    assert [path.name for path in (tmp_path / "dynexit_toys").iterdir()] == [".lock"]


def test_a_disk_that_fills_up_at_the_last_file_leaves_nothing(tmp_path, monkeypatch):
    def fail(place, arrays):
        assert place.is_dir() and arrays.keys() == toys().keys()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "_write_arrays", fail)
    with pytest.raises(OSError, match="cannot prepare toys"):
        store.prepare(RECIPE, toys(), tmp_path, progress=False)
    with pytest.raises(store.DataNotPrepared):
        store.load(RECIPE, tmp_path)


def test_too_little_space_is_refused_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(2**20, 2**20 - 1000, 1000)
    )
    with pytest.raises(OSError, match=r"No space left: 1 MiB are needed and 0 MiB are free"):
        store.prepare(RECIPE, toys(), tmp_path, progress=False)
    with pytest.raises(store.DataNotPrepared):
        store.load(RECIPE, tmp_path)


def test_a_killed_prepare_leaves_nothing_that_passes_for_whole(tmp_path):
    script = """
        import os, signal, sys
        sys.path.insert(0, sys.argv[1])
        import test_store as t
        images, labels = t.toys()["train"]
        killing = t.Failing(images, lambda: os.kill(os.getpid(), signal.SIGKILL))
        t.store.prepare(t.RECIPE, {"train": (killing, labels)}, sys.argv[2], progress=False)
    """
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(script),
        os.path.dirname(__file__),
        str(tmp_path),
    ]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert list((tmp_path / "dynexit_toys").glob("incomplete.*"))
    with pytest.raises(store.DataNotPrepared):
        store.load(RECIPE, tmp_path)
    store.prepare(RECIPE, toys(), tmp_path, progress=False)
    check_equal(store.load(RECIPE, tmp_path), toys())
    assert not list((tmp_path / "dynexit_toys").glob("incomplete.*"))


def test_where_the_data_lives(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DYNEXIT_DATA", raising=False)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert store.data_folder() == tmp_path / "home" / "tensorflow_datasets"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    assert store.data_folder() == tmp_path / "tfds"
    monkeypatch.setenv("DYNEXIT_DATA", str(tmp_path / "own"))
    assert store.data_folder() == tmp_path / "own"
    assert store.data_folder(tmp_path / "given") == tmp_path / "given"
