"""Data sets from tables, arrays and folders of images: values, splits and what is refused."""

import builtins

import numpy as np
import pytest

import dynexit as dx
from dynexit.core.labels import IGNORED


def table(path, rows=40, header="first,second,name,kind", shift=0.0):
    lines = [
        f"{i + shift},{1e9 + 2 * i},row{i},{'odd' if i % 4 == 0 else 'even'}" for i in range(rows)
    ]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_a_table_is_split_and_scaled_by_its_training_rows(tmp_path):
    path = table(tmp_path / "t.csv")
    data = dx.data.FromCsv(path, label="kind", id="name").build()
    assert data.inputs == (2,) and data.classes == ("even", "odd")
    assert [source.size for source in data[:3]] == [24, 8, 8]
    parts = [source.examples() for source in data[:3]]
    ids = np.concatenate([part["id"] for part in parts])
    assert sorted(ids) == sorted(f"row{i}" for i in range(40))
    number = np.concatenate([[int(name[3:]) for name in part["id"]] for part in parts])
    kept = number[:24].astype(float)
    for column in range(2):  # the second is the first, doubled and far from 0
        inputs = np.concatenate([part["inputs"][:, column] for part in parts])
        np.testing.assert_allclose(inputs, (number - kept.mean()) / kept.std(), rtol=1e-5)
    for part in parts:
        assert part["inputs"].dtype == np.float32 and part["labels"].dtype == np.int32
        np.testing.assert_array_equal(
            part["labels"], [int(name[3:]) % 4 == 0 for name in part["id"]]
        )
        assert part["labels"].mean() == 0.25
    again = dx.data.FromCsv(path, label="kind", id="name").build()
    other = dx.data.FromCsv(path, label="kind", id="name", split_seed=1).build()
    np.testing.assert_array_equal(again.test.examples()["id"], parts[2]["id"])
    assert set(other.test.examples()["id"]) != set(parts[2]["id"])


def test_tables_of_their_own_for_each_split(tmp_path):
    paths = [table(tmp_path / f"{k}.csv", 8, shift=k) for k in range(3)]
    data = dx.data.FromCsv(
        paths[0], calibration_path=paths[1], test_path=paths[2], label="kind", columns=("first",)
    ).build()
    assert data.inputs == (1,)
    scale = np.arange(8).std()
    for k, source in enumerate(data[:3]):
        inputs = source.examples()["inputs"][:, 0]
        np.testing.assert_allclose(inputs, (np.arange(8) + k - 3.5) / scale, rtol=1e-6)


@pytest.mark.parametrize(
    "text, words, sentence",
    [
        ("a,kind\n1,x\n2,y\n", {"label": "label"}, "column 'label' .* is no column.*a, kind"),
        ("a,kind\n1,x\n\nold,y\n", {}, "line 4: column 'a' must be a finite number, got 'old'"),
        ("a,kind\n1,x\nnan,y\n", {}, "line 3: column 'a' must be a finite number, got 'nan'"),
        ("a,kind\n1,x\n,y\n", {}, "line 3: column 'a' must be a finite number, got ''"),
        ("a,kind\n1,x\n2\n", {}, "line 3: a row must have 2 cells, got 1"),
        ("a,kind\n1,x\n2,\n", {}, "line 3: `label` column 'kind' is empty"),
        ("a,kind\n1,x\n2,x\n", {}, "at least 2 classes, got only x"),
        ("a,kind\n", {}, "at least one row"),
        ("", {}, "column 'kind'|at least one column"),
        ("kind\nx\ny\n", {}, "at least one column other than the label"),
        ("a,a,kind\n1,1,x\n2,2,y\n", {}, "must name a column once"),
        ("a,kind\n1,x\n2,y\n3,x\n", {"columns": ("b",)}, "column 'b' .* is no column"),
        ("a,kind\n1,x\n2,y\n3,x\n", {"calibration": 0.6, "test": 0.4}, "leave rows to train on"),
        ("a,kind\n1,x\n2,y\n3,x\n", {"test": 0.0}, "must be above 0"),
        ("a,kind\n1,x\n2,y\n3,x\n", {"split_seed": -1}, "split_seed must lie in"),
        ("a,kind\n1,x\n2,y\n", {}, "leave rows to train on"),
        ("a,kind\n1,x\n2,y\n3,x\n", {"test_path": "t.csv"}, "must be given together"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(tmp_path, text, words, sentence):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        dx.data.FromCsv(path, **{"label": "kind", **words}).build()


def test_a_table_that_is_not_there_or_far_away_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.csv cannot be read"):
        dx.data.FromCsv(tmp_path / "nowhere.csv").build()
    with pytest.raises(ValueError, match="file system"):
        dx.data.FromCsv("gs://bucket/table.csv").build()
    one, two = table(tmp_path / "1.csv", 8), table(tmp_path / "2.csv", 8)
    two.write_text(two.read_text().replace("odd", "new"))
    with pytest.raises(ValueError, match=r"2.csv, line 2: 'new' is no class"):
        dx.data.FromCsv(one, calibration_path=one, test_path=two, label="kind", id="name").build()


def test_settings_with_a_table_are_validated_before_jax(tmp_path):
    path = table(tmp_path / "t.csv")
    assert dx.data.FromCsv(path, label="kind", id="name").validate() == []
    (sentence,) = dx.data.FromCsv(path, label="sort").validate()
    assert "'sort'" in sentence


def saved(path, inputs, labels, **more):
    np.savez(path, inputs=inputs, labels=labels, **more)
    return path


def test_bytes_are_scaled_on_the_device_and_numbers_on_the_host(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 3, 3, 2)).astype(np.uint8)
    labels = np.arange(30, dtype=np.uint8) % 3
    names = np.array([f"scan-{i}" for i in range(30)])
    as_bytes = saved(tmp_path / "b.npz", pixels, labels, name=names)
    as_numbers = saved(tmp_path / "n.npz", pixels.astype(np.float64) / 7 + 3, labels)
    one = dx.data.FromNpz(as_bytes, id="name").build()
    two = dx.data.FromNpz(as_numbers).build()
    assert one.inputs == (3, 3, 2) and one.classes == ("0", "1", "2")
    assert one.prepare is not None and two.prepare is None
    for a, b in zip(one[:3], two[:3], strict=True):
        inputs = np.asarray(one.prepare(a.examples()["inputs"]))
        np.testing.assert_allclose(inputs, b.examples()["inputs"], atol=1e-5)
        assert a.examples()["labels"].dtype == np.int32 and "id" in a.examples()
    scaled = np.asarray(one.prepare(one.train.examples()["inputs"]))
    np.testing.assert_allclose(scaled.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(axis=(0, 1, 2)), 1, atol=1e-5)


def test_class_255_and_an_ignored_label(tmp_path):
    labels = (np.arange(512) % 256).astype(np.uint8)
    data = dx.data.FromNpz(saved(tmp_path / "a.npz", np.zeros((512, 2)), labels)).build()
    assert len(data.classes) == 256
    found = np.concatenate([source.examples()["labels"] for source in data[:3]])
    assert sorted(found) == sorted(labels.astype(int))
    tokens = np.arange(40).reshape(10, 4) % 7
    labels = np.where(tokens == 3, -100, tokens % 2)
    path = saved(tmp_path / "t.npz", tokens, labels)
    with pytest.raises(ValueError, match="-100; `ignore_label`"):
        dx.data.FromNpz(path, vocabulary=7).build()
    data = dx.data.FromNpz(path, vocabulary=7, ignore_label=-100).build()
    assert data.inputs == dx.Tokens(7, 4) and data.classes == ("0", "1")
    part = data.train.examples()
    np.testing.assert_array_equal(part["labels"] == IGNORED, part["inputs"] == 3)


@pytest.mark.parametrize(
    "inputs, labels, words, sentence",
    [
        (np.zeros((6, 2)), np.arange(6) % 2, {"inputs_name": "x"}, "no array 'x'; it has inputs"),
        (np.zeros((6, 2)), np.arange(6) / 2, {}, "must be integers, got float64"),
        (np.zeros((6, 2)), np.zeros(6, int), {}, "at least 2 classes, got only 0"),
        (np.zeros((6, 2)), np.arange(5) % 2, {}, "must have one length"),
        (np.zeros(6), np.arange(6) % 2, {}, "must have shape"),
        (np.zeros((6, 2), int), np.arange(6) % 2, {}, "`vocabulary` is for token ids"),
        (np.zeros((6, 2), complex), np.arange(6) % 2, {}, "got complex128"),
        (np.full((6, 2), np.nan), np.arange(6) % 2, {}, "must be finite.* the first is row 0"),
        (np.full((6, 2), "a"), np.arange(6) % 2, {}, "bytes .* or floating point, got <U1"),
        (np.full((6, 2), None), np.arange(6) % 2, {}, "got objects"),
        (np.full((6, 2), 9), np.arange(6) % 2, {"vocabulary": 9}, "must lie in 0..8"),
    ],
)
def test_arrays_that_cannot_be_used_are_refused(tmp_path, inputs, labels, words, sentence):
    path = saved(tmp_path / "a.npz", inputs, labels)
    with pytest.raises(ValueError, match=sentence):
        dx.data.FromNpz(path, **words).build()


def test_what_is_no_npz_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "b.npz").write_bytes(b"PK\x03\x04broken")
    for name in ("a.npy", "b.npz", "c.npz"):
        with pytest.raises(ValueError, match=rf"`path` .*{name}"):
            dx.data.FromNpz(tmp_path / name).build()


def folders(path, kinds=("cat", "dog"), rows=5, shape=(4, 6)):
    for value, kind in enumerate(kinds):
        (path / kind).mkdir(parents=True)
        for i in range(rows):
            np.save(path / kind / f"{i}.npy", np.full(shape, 10 * value + i, np.uint8))
    return path


def test_folders_of_arrays(tmp_path):
    data = dx.data.FromFolders(folders(tmp_path), shift=1, flip=True).build()
    assert data.inputs == (4, 6, 1) and data.classes == ("cat", "dog")
    assert [source.size for source in data[:3]] == [6, 2, 2] and data.augment is not None
    for source in data[:3]:
        part = source.examples()
        for image, label, name in zip(part["inputs"], part["labels"], part["id"], strict=True):
            kind, number = name.removesuffix(".npy").split("/")
            assert data.classes[label] == kind and (image == 10 * label + int(number)).all()


def test_folders_of_pictures(tmp_path):
    pytest.importorskip("PIL")
    from PIL import Image

    for kind, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (tmp_path / kind).mkdir()
        for i in range(4):
            Image.new("RGB", (6, 4), colour).save(tmp_path / kind / f"{i}.png")
    data = dx.data.FromFolders(tmp_path).build()
    assert data.inputs == (4, 6, 3) and data.classes == ("blue", "red")
    part = data.train.examples()
    assert (part["inputs"][part["labels"] == 1] == [255, 0, 0]).all()
    assert dx.data.FromFolders(tmp_path, grey=True).build().inputs == (4, 6, 1)
    (tmp_path / "red" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"0\.png cannot be read as a picture"):
        dx.data.FromFolders(tmp_path).build()


def test_pictures_without_pillow_are_refused(tmp_path, monkeypatch):
    for kind in ("a", "b"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "0.png").write_bytes(b"")
    real = builtins.__import__
    absent = lambda name, *rest: (
        (_ for _ in ()).throw(ImportError(name)) if name == "PIL" else real(name, *rest)
    )
    monkeypatch.setattr(builtins, "__import__", absent)
    (sentence,) = dx.data.FromFolders(tmp_path).validate()
    assert "pip install pillow" in sentence


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must be a folder"):
        dx.data.FromFolders(tmp_path / "nowhere").build()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="one folder for each class, got none"):
        dx.data.FromFolders(tmp_path / "empty").build()
    (tmp_path / "empty" / "cat").mkdir()
    with pytest.raises(ValueError, match="cat has no image"):
        dx.data.FromFolders(tmp_path / "empty").build()
    with pytest.raises(ValueError, match="at least 2 classes, got only cat"):
        dx.data.FromFolders(folders(tmp_path / "one", ("cat",))).build()
    path = folders(tmp_path / "sizes")
    np.save(path / "dog" / "3.npy", np.zeros((5, 6), np.uint8))
    with pytest.raises(ValueError, match=r"one size and type: .*0\.npy is .*3\.npy is"):
        dx.data.FromFolders(path).build()
    with pytest.raises(ValueError, match=r"shift must lie in 0..3, got 4"):
        dx.data.FromFolders(folders(tmp_path / "small"), shift=4).build()
    first, other = folders(tmp_path / "first"), folders(tmp_path / "other", ("cat", "eel"))
    with pytest.raises(ValueError, match=r"has classes that .* lacks: eel"):
        dx.data.FromFolders(first, calibration_path=first, test_path=other).build()
