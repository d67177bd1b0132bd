"""Everything works where the system lacks what Linux has; simulated by taking it away."""

import os
import subprocess
import sys
import types

import pytest

from dynexit.core import files, system


def test_cores_without_affinity(monkeypatch):
    assert system.cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert system.cores() == os.cpu_count()
    from dynexit.runs.pipeline import hardware

    assert f"{os.cpu_count()} host cores" in hardware()


def test_memory_without_sysconf(monkeypatch):
    assert (system.memory() or 0) > 2**20
    monkeypatch.delattr(os, "sysconf")
    assert system.memory() is None


def test_every_module_is_imported_without_fcntl():
    script = (
        "import sys; sys.modules['fcntl'] = None\n"
        "import dynexit.data.store, dynexit.data.prepare, dynexit.runs.pipeline, dynexit.cli.main\n"
        "import dynexit.cli.train, dynexit.training.loop, dynexit.engine.tuning.tune_cache\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_lock_of_windows(tmp_path, monkeypatch):
    called = []

    def locking(descriptor, mode, count):
        called.append((os.lseek(descriptor, 0, os.SEEK_CUR) >= 2**30, mode, count))
        if mode == "try" and len(called) > 1:
            raise OSError

    windows = types.SimpleNamespace(locking=locking, LK_LOCK="wait", LK_NBLCK="try")
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", windows)
    with open(tmp_path / "lock", "w+") as file:
        assert files.lock(file, wait=False)
        assert not files.lock(file, wait=False)
        assert files.lock(file, wait=True)
        assert file.tell() == 0
    assert called == [(True, "try", 1), (True, "try", 1), (True, "wait", 1)]


@pytest.mark.parametrize(
    "path, expected",
    [
        ("gs://b/run", True),
        ("S3://b", True),
        ("memory:/x", True),
        ("runs/a", False),
        ("/runs/a:/b", False),
        ("C:/runs", False),
        ("C:\\runs", False),
        ("runs/gs://b", False),
    ],
)
def test_addresses(path, expected):
    assert files.is_url(path) is expected


def test_what_is_replaced_stays_where_writing_fails(tmp_path):
    path, target = tmp_path / "a.txt", tmp_path / "target"
    target.write_text("precious")
    path.symlink_to(target)
    with pytest.raises(RuntimeError), files.replacing(path) as draft:
        draft.write_text("half")
        raise RuntimeError
    assert path.is_symlink() and sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "target"]
    with files.replacing(path) as draft:
        draft.write_text("whole")
    assert not path.is_symlink() and (path.read_text(), target.read_text()) == ("whole", "precious")
