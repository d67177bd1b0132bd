"""Experiment files: imports of their own folder, their hash, and files that are none."""

import hashlib
import sys

import pytest

from dynexit.runs.experiment_file import SettingsError, digest, load, neighbours

EXPERIMENT = '''"""Nothing."""
import dataclasses
import sizes

@dataclasses.dataclass(frozen=True)
class Settings:
    """All."""
    depth: int = sizes.DEPTH
    """blocks"""

SMOKE = Settings(depth=1)

def build(settings):
    from parts import late
    return sizes.DEPTH, late.NAME
'''


def written(folder, depth, name):
    (folder / "parts").mkdir(parents=True)
    (folder / "mine.py").write_text(EXPERIMENT)
    (folder / "sizes.py").write_text(f"from deeper import ONE\nDEPTH = {depth} * ONE\n")
    (folder / "deeper.py").write_text("ONE = 1\n")
    (folder / "unused.py").write_text("raise SystemExit\n")
    (folder / "parts" / "__init__.py").write_text("")
    (folder / "parts" / "late.py").write_text(f"NAME = {name!r}\n")
    return folder / "mine.py"


def test_neighbours_are_imported_and_two_folders_do_not_mix(tmp_path):
    first = load(written(tmp_path / "a", 3, "a"))
    second = load(written(tmp_path / "b", 7, "b"))
    assert (first.settings.depth, second.settings.depth) == (3, 7)
    assert first.build(first.settings) == (3, "a")
    assert second.build(second.settings) == (7, "b")
    assert first.build(first.settings) == (3, "a")
    assert sys.modules["sizes"].DEPTH == 3


def test_the_hash_covers_what_is_imported(tmp_path):
    path = written(tmp_path / "a", 3, "a")
    names = {each.relative_to(tmp_path / "a").as_posix() for each in neighbours(path)}
    assert names == {"sizes.py", "deeper.py", "parts/__init__.py", "parts/late.py"}
    before = digest(path)
    assert load(path).sha256 == before
    (tmp_path / "a" / "unused.py").write_text("")
    assert digest(path) == before
    for changed in ("mine.py", "deeper.py", "parts/late.py"):
        file = tmp_path / "a" / changed
        file.write_text(file.read_text() + "# a comment\n")
        assert digest(path) != before
        before = digest(path)


def test_the_hash_of_a_file_alone_is_that_of_its_bytes(tmp_path):
    path = tmp_path / "alone.py"
    path.write_text("import json, dynexit\n")
    (tmp_path / "dynexit.py").write_text("")
    assert digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("def f(:\n", "mine.py, line 1 is not Python"),
        ("import nowhere_at_all\n", "mine.py cannot be imported: No module named"),
        ("x = 1\n", "defines no Settings, no SMOKE"),
    ],
)
def test_faulty_files_are_refused(tmp_path, text, sentence):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(SettingsError, match=sentence):
        load(tmp_path / "mine.py")
