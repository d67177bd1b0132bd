"""Run folders: whose they are, what is recorded, and what is refused."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dynexit.core.folder_lock import FolderInUse, in_use
from dynexit.core.settings import Mesh
from dynexit.runs.experiment_file import SettingsError, load
from dynexit.runs.recorded_settings import to_dict
from dynexit.runs.run_folder import (
    claim,
    default_folder,
    read,
    refuse_folder,
    reopen,
    take_up,
    write_json,
    write_text,
)

EXPERIMENT = '''"""Nothing."""
import dataclasses

@dataclasses.dataclass(frozen=True)
class Settings:
    """All."""
    depth: int = 3
    """blocks"""
    seed: int = 0
    """seed"""

SMOKE = Settings(depth=1)

def build(settings):
    raise OSError(28, "No space left on device")
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "first.py"
    path.write_text(EXPERIMENT)
    return load(path)


def claimed(folder, file, settings=None):
    said = []
    settings = settings or file.settings
    return claim(folder, file, settings, ["train", "first.py"], said.append), said


def test_a_new_folder_records_what_runs(tmp_path, file):
    run, said = claimed(tmp_path / "run", file)
    recorded = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert run.recorded == recorded and said == []
    assert recorded["settings"] == {"depth": 3, "seed": 0} and recorded["command"] == [
        "dynexit",
        "train",
        "first.py",
    ]
    assert recorded["sha256"] == file.sha256 and {"python", "jax", "flax", "dynexit"} <= set(
        recorded["versions"]
    )


def test_the_same_experiment_takes_its_folder_up_again(tmp_path, file):
    claimed(tmp_path / "run", file)
    run, said = claimed(tmp_path / "run", file)
    assert run.settings == file.settings and said == []


def test_a_run_older_than_a_setting_goes_on_with_its_default(tmp_path, file):
    run, _ = claimed(tmp_path / "run", file)
    path = tmp_path / "run" / "settings.json"
    path.write_text(json.dumps({**run.recorded, "settings": {"depth": 3}}))
    run, said = claimed(tmp_path / "run", file)
    assert run.settings == file.settings and said == [
        f"{path} is older than Settings.seed: its default is taken, 0"
    ]
    with pytest.raises(SettingsError, match="seed is 0 there, 1 here"):
        claimed(tmp_path / "run", file, dataclasses.replace(file.settings, seed=1))


def test_other_settings_are_refused_by_name(tmp_path, file):
    claimed(tmp_path / "run", file)
    with pytest.raises(
        SettingsError,
        match=r"was begun with other settings; name another folder with --run:\n  depth is 3 there, 5 here",
    ):
        claimed(tmp_path / "run", file, dataclasses.replace(file.settings, depth=5))


def test_a_run_resumes_on_another_mesh_and_says_so(tmp_path):
    path = tmp_path / "meshed.py"
    path.write_text(
        EXPERIMENT.replace("class Settings:", "class Settings(dx.Settings):").replace(
            "import dataclasses", "import dataclasses\nimport dynexit as dx"
        )
    )
    file = load(path)
    claimed(tmp_path / "run", file)
    moved = dataclasses.replace(file.settings, mesh=Mesh(fsdp=2))
    run, said = claimed(tmp_path / "run", file, moved)
    assert run.settings.mesh.fsdp == 2 and len(said) == 1
    assert "bits may differ: mesh.fsdp is 1 there, 2 here" in said[0]
    with pytest.raises(SettingsError, match=r"--run:\n  depth is 3 there, 5 here$"):
        claimed(tmp_path / "run", file, dataclasses.replace(moved, depth=5))


def test_a_run_of_another_experiment_is_refused(tmp_path, file):
    claimed(tmp_path / "run", file)
    other = tmp_path / "second.py"
    other.write_text(EXPERIMENT)
    with pytest.raises(
        SettingsError,
        match=r"run is a run of another experiment: first, not second; name another folder with --run",
    ):
        claimed(tmp_path / "run", load(other))


def test_a_folder_that_is_no_run_is_refused(tmp_path, file):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("")
    with pytest.raises(
        SettingsError, match=r"thesis exists and is no run folder \(it holds no settings.json\)"
    ):
        claimed(tmp_path / "thesis", file)
    with pytest.raises(
        SettingsError, match=r"thesis is not a run folder: it holds no settings.json"
    ):
        read(tmp_path / "thesis")


def test_a_changed_experiment_file_must_be_named(tmp_path, file):
    claimed(tmp_path / "run", file)
    ran = tmp_path / "ran"
    file.path.write_text(EXPERIMENT + f"open({str(ran)!r}, 'w').close()\n")
    with pytest.raises(SettingsError, match=r"first.py.* recorded .* add --experiment"):
        reopen(tmp_path / "run", None, print)
    assert not ran.exists()
    said = []
    run = reopen(tmp_path / "run", file.path, said.append)
    assert ran.exists() and to_dict(run.settings) == to_dict(file.settings)
    assert len(said) == 1 and said[0].startswith("WARNING: ") and "sha256" in said[0]
    _, said = claimed(tmp_path / "run", load(file.path))
    assert len(said) == 1 and "sha256" in said[0]


def test_reopening_wants_the_experiment_file(tmp_path, file):
    claimed(tmp_path / "run", file)
    moved = file.path.rename(tmp_path / "moved.py")
    with pytest.raises(
        SettingsError,
        match=r"was trained from .*first.py, which is not there; name the file with --experiment FILE",
    ):
        reopen(tmp_path / "run", None, lambda line: None)
    assert to_dict(reopen(tmp_path / "run", moved, lambda line: None).settings) == to_dict(
        file.settings
    )


def test_code_in_the_run_folder_is_never_run(tmp_path, file):
    run, _ = claimed(tmp_path / "run", file)
    inside, ran = tmp_path / "run" / "first.py", tmp_path / "ran"
    inside.write_text(f"open({str(ran)!r}, 'w').close()\n" + EXPERIMENT)
    assert reopen(tmp_path / "run", None, print).file.path == file.path.resolve()
    recorded = {**run.recorded, "experiment": str(inside)}
    (tmp_path / "run" / "settings.json").write_text(json.dumps(recorded))
    link = tmp_path / "link.py"
    link.symlink_to(inside)
    for named in (None, inside, link):
        with pytest.raises(SettingsError, match="inside the run folder"):
            reopen(tmp_path / "run", named, print)
    recorded = {**run.recorded, "experiment": "first.py"}
    (tmp_path / "run" / "settings.json").write_text(json.dumps(recorded))
    with pytest.raises(SettingsError, match="no absolute path"):
        reopen(tmp_path / "run", None, print)
    assert not ran.exists()
    with pytest.raises(SettingsError, match="inside the run folder"):
        refuse_folder(tmp_path, file)


@pytest.mark.parametrize(
    "content, sentence",
    [("{", "is damaged: "), ("{}", "is damaged: it lacks experiment, name, settings, sha256")],
)
def test_a_damaged_record_is_refused(tmp_path, file, content, sentence):
    claimed(tmp_path / "run", file)
    (tmp_path / "run" / "settings.json").write_text(content)
    with pytest.raises(SettingsError, match=sentence):
        read(tmp_path / "run")


def test_recorded_settings_are_validated(tmp_path):
    path = tmp_path / "first.py"
    check = "    def validate(self):\n        return [] if self.depth > 0 else ['depth is low']\n"
    path.write_text(EXPERIMENT.replace("\nSMOKE", check + "\nSMOKE"))
    run, _ = claimed(tmp_path / "run", load(path))
    settings = tmp_path / "run" / "settings.json"
    for value, sentence in ((-1, "depth is low"), ("many", "depth must be an integer")):
        settings.write_text(json.dumps({**run.recorded, "settings": {"depth": value, "seed": 0}}))
        with pytest.raises(SettingsError, match=f"settings.json.*{sentence}"):
            reopen(tmp_path / "run", None, print)


@pytest.mark.parametrize(
    "folder", ["gs://bucket/run", "s3://b", "file:///tmp/run", Path("gs://bucket/run")]
)
def test_an_address_is_no_run_folder(tmp_path, file, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="file system"):
        refuse_folder(folder, file)
    with pytest.raises(SettingsError, match="file system"):
        read(Path(folder))
    assert not list(tmp_path.glob("*:*"))


def test_a_folder_below_a_file_or_without_permission_is_refused(tmp_path, file, monkeypatch):
    (tmp_path / "note").write_text("")
    for folder in (tmp_path / "note" / "run", tmp_path / "note"):
        with pytest.raises(SettingsError, match="note is not a folder"):
            refuse_folder(folder, file)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(SettingsError, match="no permission for"):
        refuse_folder(tmp_path / "run", file)
    monkeypatch.undo()

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(SettingsError, match="run cannot be used: Permission denied"):
        claimed(tmp_path / "run", file)


def test_nothing_stays_behind_where_the_record_cannot_be_written(tmp_path, file, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dynexit.runs.run_folder.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        claimed(tmp_path / "run", file)
    assert not (tmp_path / "run").exists()


def test_links_are_replaced_and_not_followed(tmp_path, file):
    target = tmp_path / "precious"
    target.write_text("precious")
    folder = tmp_path / "run"
    claimed(folder, file)
    for name, write in (("report.json", write_json), ("report.md", write_text)):
        for link in (name, f"{name}.draft"):
            (folder / link).symlink_to(target)
        write(folder / name, "new")
        assert not (folder / name).is_symlink() and "new" in (folder / name).read_text()
    (folder / "checkpoints").symlink_to(tmp_path)
    with pytest.raises(SettingsError, match="checkpoints is a link"):
        claimed(folder, file)
    assert target.read_text() == "precious"


def test_folders_of_one_second_differ():
    assert len({default_folder("first") for _ in range(20)}) == 20


HOLDER = """
import sys, time
from pathlib import Path
from dynexit.core.folder_lock import in_use
with in_use(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_held_by_one_process_and_freed_by_its_death(tmp_path, file):
    folder = tmp_path / "run"
    claimed(folder, file)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(FolderInUse, match=f"run is in use by process {holder.pid} on "):
            claimed(folder, file)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    assert (folder / "lock.json").exists()  # the stale lock of a dead process
    claimed(folder, file)
    with in_use(folder), in_use(folder):
        assert json.loads((folder / "lock.json").read_text())["process"] == os.getpid()
    assert not (folder / "lock.json").exists()


LATE = """
import json, os, sys, time
from pathlib import Path
from dynexit.core.files import lock
with open(Path(sys.argv[1]) / "lock.json", "w") as file:
    lock(file, wait=True)
    print("held", flush=True)
    time.sleep(0.3)
    json.dump({"process": os.getpid(), "host": "here", "started": "now"}, file)
    file.flush()
    time.sleep(60)
"""


def test_a_holder_that_has_not_yet_written_its_name_is_named(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", LATE, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert (tmp_path / "lock.json").read_text() == ""
        with pytest.raises(FolderInUse, match=f"is in use by process {holder.pid} on "):
            with in_use(tmp_path):
                pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_processes_that_claim_one_folder_together_agree(tmp_path, file):
    code = f"""
import dataclasses, sys, time
from pathlib import Path
from dynexit.runs.experiment_file import SettingsError, load
from dynexit.runs.run_folder import claim
from dynexit.core.folder_lock import FolderInUse
file = load({str(file.path)!r})
settings = dataclasses.replace(file.settings, seed=int(sys.argv[1]))
time.sleep(max(0.0, float(sys.argv[2]) - time.time()))
try:
    claim(Path({str(tmp_path / "run")!r}), file, settings, [], print)
    print("claimed")
except (SettingsError, FolderInUse):
    print("refused")
"""
    start = str(time.time() + 2.0)
    racing = [
        subprocess.Popen([sys.executable, "-c", code, str(k), start], stdout=subprocess.PIPE)
        for k in range(3)
    ]
    said = [process.communicate(timeout=120)[0].decode().strip() for process in racing]
    assert sorted(said) == ["claimed", "refused", "refused"]
    assert read(tmp_path / "run")["settings"]["seed"] == said.index("claimed")


def test_the_other_processes_take_up_what_the_first_has_claimed(tmp_path, file):
    with pytest.raises(SettingsError, match="is not a run folder"):
        take_up(tmp_path / "run", file, file.settings, print)
    assert not (tmp_path / "run").exists()
    run, _ = claimed(tmp_path / "run", file)
    assert take_up(tmp_path / "run", file, file.settings, print) == run
    other = dataclasses.replace(file.settings, seed=7)
    with pytest.raises(SettingsError, match="seed is 0 there, 7 here"):
        take_up(tmp_path / "run", file, other, print)
