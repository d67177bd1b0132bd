"""What the commands refuse, with which message and exit code."""

import errno

import pytest

from dynexit.cli.main import main
from dynexit.runs.experiment_file import load
from dynexit.runs.run_folder import claim

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
            "--block must be of transformer, tied, mixer, conv, language, got lstm",
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
        (["train", "first.py", "--seed", "-1"], 2, "seed must lie in 0..4294967295, got -1"),
        (["train", "first.py", "--seed", "4294967296"], 2, "seed must lie in 0..4294967295"),
        (["train", "first.py", "--run", "gs://bucket/run"], 2, "got gs://bucket/run"),
        (["train", "first.py", "--run", "first.py/run"], 2, "first.py is not a folder"),
        (["train", "first.py", "--init", "nowhere"], 2, "nowhere is not a run folder"),
        (["evaluate", "gs://bucket/run"], 2, "got gs://bucket/run"),
        (["plot", "gs://bucket/run"], 2, "got gs://bucket/run"),
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
    claim(tmp_path / "run", file, file.settings, ["train", "first.py"], print)
    assert main(["plot", str(tmp_path / "run")]) == 2
    assert "has no report.json yet: it has not finished" in capsys.readouterr().err
    (tmp_path / "run" / "report.json").write_text("{")
    assert main(["plot", str(tmp_path / "run")]) == 2
    assert "report.json is damaged" in capsys.readouterr().err
