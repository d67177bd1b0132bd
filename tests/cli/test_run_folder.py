"""Run folders: whose they are, and what is said when they are not what they should be."""

import dataclasses
import errno
import json

import pytest

from dynexit.cli.main import main
from dynexit.runs.experiment_file import SettingsError, load, to_dict
from dynexit.runs.run_folder import claim, read, reopen

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
    return claim(folder, file, settings or file.settings, ["train", "first.py"], said.append), said


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


def test_a_changed_experiment_file_is_said_aloud(tmp_path, file):
    claimed(tmp_path / "run", file)
    file.path.write_text(EXPERIMENT + "# a word\n")
    _, said = claimed(tmp_path / "run", load(file.path))
    assert (
        len(said) == 1 and "first.py is not the file this run was trained from (sha256" in said[0]
    )
    said.clear()
    assert to_dict(reopen(tmp_path / "run", None, said.append).settings) == to_dict(file.settings)
    assert len(said) == 1 and "going on with the file as it is now" in said[0]


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
    claimed(tmp_path / "run", file)
    (tmp_path / "run" / "first.py").write_text("raise SystemExit('code of the run folder ran')")
    assert reopen(tmp_path / "run", None, lambda line: None).file.path == file.path.resolve()


@pytest.mark.parametrize(
    "content, sentence",
    [("{", "is damaged: "), ("{}", "is damaged: it lacks experiment, name, settings, sha256")],
)
def test_a_damaged_record_is_refused(tmp_path, file, content, sentence):
    claimed(tmp_path / "run", file)
    (tmp_path / "run" / "settings.json").write_text(content)
    with pytest.raises(SettingsError, match=sentence):
        read(tmp_path / "run")


@pytest.mark.parametrize(
    "words, code, sentence",
    [
        (["evaluate"], 2, "usage: dynexit evaluate RUN"),
        (["evaluate", "nowhere"], 2, "nowhere is not a run folder"),
        (
            ["train", "mine.py", "extra"],
            2,
            "unexpected argument 'extra'; options are written --name value",
        ),
        (
            ["calibrate", "nowhere"],
            2,
            "exactly one of --accept-loss, --budget and --risk is wanted",
        ),
        (
            ["calibrate", "nowhere", "--budget", "0.5", "--max-negative-flips", "0.1"],
            2,
            "--max-negative-flips goes with --accept-loss",
        ),
        (
            ["calibrate", "nowhere", "--accept-loss", "0.1", "--budget", "0.5"],
            2,
            "exactly one of --accept-loss, --budget and --risk is wanted",
        ),
        (
            ["calibrate", "nowhere", "--budget", "5"],
            2,
            "budget must lie above 0 and up to 1, got 5.0",
        ),
        (["plot", "nowhere"], 2, "nowhere is not a run folder"),
        (
            ["data", "prepare", "fashion_mnits"],
            2,
            "got 'fashion_mnits'; the nearest is fashion_mnist",
        ),
        (["data", "fetch", "digits"], 2, "usage: dynexit data prepare NAME"),
        (["data", "prepare", "digits", "--raw", "x"], 2, "--raw is not for digits"),
        (
            ["bench", "--width", "65", "--depth", "0"],
            2,
            "--depth must be at least 1, got 0\n  --width must be a multiple of 64, got 65",
        ),
        (
            ["bench", "--block", "lstm"],
            2,
            "--block must be of transformer, tied, mixer, conv, got lstm",
        ),
        (["bench", "--mean", "0"], 2, "--mean must lie above 0 and up to 1, got 0"),
        (
            ["bench", "--block", "conv", "--tokens", "6"],
            2,
            "--tokens must be a square number for conv, got 6",
        ),
        (["bench", "--peer", "caffe"], 2, "--peer must be of torch, masked, got caffe"),
        (
            ["bench", "--peer", "masked", "torch", "--block", "mixer"],
            2,
            "--peer torch",
        ),
        (["train", "nowhere.py"], 2, "no experiment file at nowhere.py"),
        (["fly"], 2, "'fly' is not a command"),
        (["train", "first.py", "--depth", "x"], 2, "--depth takes int, got x"),
        (
            ["train", "first.py"],
            1,
            "the disk is full: [Errno 28] No space left on device. Free some space and run the same command again",
        ),
    ],
)
def test_each_refusal_has_its_message_and_code(file, monkeypatch, capsys, words, code, sentence):
    monkeypatch.chdir(file.path.parent)
    assert main(words) == code
    assert sentence in capsys.readouterr().err


def test_other_errors_keep_their_traceback(file, monkeypatch):
    monkeypatch.chdir(file.path.parent)
    changed = EXPERIMENT.replace("28", str(errno.EACCES))
    file.path.write_text(
        changed + "\n"
    )  # of another size: Python takes bytecode of the same second and size for current
    with pytest.raises(OSError, match="No space left"):
        main(["train", "first.py"])


def test_a_run_that_has_not_finished_cannot_be_drawn(tmp_path, file, capsys):
    claimed(tmp_path / "run", file)
    assert main(["plot", str(tmp_path / "run")]) == 2
    assert "has no report.json yet: it has not finished" in capsys.readouterr().err
    (tmp_path / "run" / "report.json").write_text("{")
    assert main(["plot", str(tmp_path / "run")]) == 2
    assert "report.json is damaged" in capsys.readouterr().err
