"""Text of Python files: windows, splits that share no file, draws by (seed, step)."""

import numpy as np
import pytest

from dynexit.data.text.python_source import decoded, python_source


@pytest.fixture
def folder(tmp_path):
    for k in range(45):
        (tmp_path / f"f{k:02d}.py").write_text(f"# {k:02d}\n" + f"x{k:02d} = 'ä'\n" * 30)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "left_out.py").write_text("y = 1\n" * 100)
    return tmp_path


def test_files_are_dealt_to_the_splits_and_no_character_is_lost(folder):
    train, calibration, test = python_source(40, examples=8, folder=folder)
    text = {
        s.split: "".join(decoded(row) for row in s.examples()["inputs"])
        for s in (train, calibration, test)
    }
    numbers = {
        split: {int(word[1:3]) for word in t.split() if len(word) >= 3 and word[0] == "x"}
        for split, t in text.items()
    }
    assert (
        numbers["test"] <= {0, 20, 40}
        and numbers["calibration"] <= {10, 30}
        and numbers["test"]
        and numbers["calibration"]
    )
    assert not numbers["train"] & {0, 10, 20, 30, 40} and "y = 1" not in "".join(text.values())
    assert "'?'" in text["train"], "what is not ASCII is read as ?"


def test_labels_are_the_characters_that_follow(folder):
    train = python_source(16, examples=4, folder=folder).train
    batch = train.batch(3, 5, 6)
    assert (
        batch["inputs"].shape == batch["labels"].shape == (6, 16)
        and batch["inputs"].dtype == batch["labels"].dtype == np.int32
    )
    np.testing.assert_array_equal(batch["inputs"][:, 1:], batch["labels"][:, :-1])
    again, other = train.batch(3, 5, 6), train.batch(3, 6, 6)
    np.testing.assert_array_equal(batch["labels"], again["labels"])
    assert not np.array_equal(batch["labels"], other["labels"])


def test_the_standard_library_is_there_and_too_little_text_is_refused(tmp_path):
    source = python_source(64, examples=10).test
    assert source.size == 10 and "def " in "".join(
        decoded(row) for row in source.examples()["inputs"]
    )
    (tmp_path / "one.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"characters for .*, too few for windows of 64"):
        python_source(64, folder=tmp_path)
