"""`dynexit launch`: what it refuses, what it passes on, and that it loads no JAX."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dynexit.cli.launch import TARGETS, flags_of, options_of
from dynexit.cli.main import main
from dynexit.core.settings import validate

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
    raise SystemExit(1)
'''
TPU = ("--accelerator", "v6e-8", "--zone", "us-east5-b", "--storage", "gs://bucket")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("first.py").write_text(EXPERIMENT)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["slrum", "first.py"], "TARGET must be one of local, slurm, sky, tpu, xpk, got 'slrum'"),
        (["slrum", "first.py"], "the nearest is slurm"),
        (["local"], "usage: dynexit launch TARGET FILE"),
        (["local", "nowhere.py"], "no experiment file at nowhere.py"),
        (["local", "first.py", "--deph", "4"], "--deph is not a setting; did you mean --depth?"),
        (["local", "first.py", "--depth", "x"], "--depth takes int, got x"),
        (["local", "first.py", "--nodes", "2"], "--nodes is not a setting"),
        (["local", "first.py", "--detach"], "--detach is not a setting"),
        (["local", "first.py", "--processes", "0"], "processes must lie in 1..256, got 0"),
        (["tpu", "first.py", "--zone", "us-west4-a"], "accelerator must be given"),
        (["tpu", "first.py", *TPU[:3], "here", *TPU[4:]], "zone must be a zone"),
        (["slurm", "first.py", "--time", "4h"], "time must be HOURS:MM:SS"),
        (["sky", "first.py"], "storage must be given"),
        (["xpk", "first.py", *TPU[:4]], "cluster must be given"),
    ],
)
def test_each_refusal_names_the_option(capsys, words, sentence):
    assert main(["launch", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_settings_reach_training_and_options_of_the_target_do_not(capsys):
    words = ["launch", "tpu", "first.py", "--depth", "6", *TPU, "--seed=3", "--spot", "--smoke"]
    assert main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "dynexit train experiment/first.py --depth 6 --seed 3 --smoke" in shown
    assert shown.count("--spot") == 1 and "--dry-run" not in shown
    assert not Path("runs").exists()


def test_the_same_command_has_the_same_name_and_other_settings_another(capsys):
    names = []
    for words in ([], [], ["--depth", "6"], ["--name", "mine"]):
        assert main(["launch", "slurm", "first.py", "--dry-run", *words]) == 0
        shown = capsys.readouterr().out
        names.append(shown.partition("#SBATCH --job-name=")[2].partition("\n")[0])
    assert names[0] == names[1] != names[2] and names[3] == "mine"


@pytest.mark.parametrize("target", TARGETS)
def test_every_option_has_a_help_text_and_a_default(target, capsys):
    kind = options_of(target)
    for flag in flags_of(kind):
        assert flag.help, flag
    validate(kind())  # without an exception
    with pytest.raises(SystemExit):
        main(["launch", target, "first.py", "--help"])
    shown = capsys.readouterr().out
    assert "--restarts" in shown and "--depth" in shown


def test_a_missing_program_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["launch", "tpu", "first.py", *TPU]) == 2
    assert "`gcloud` is not on the PATH; install the Google Cloud CLI" in capsys.readouterr().err


def test_the_help_of_the_command_lists_the_targets(capsys):
    assert main(["launch", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {target} " in shown for target in TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_launching_loads_no_jax(target):
    required = {
        "tpu": TPU,
        "sky": ("--accelerators", "H100", "--storage", "gs://bucket"),
        "xpk": (*TPU[:4], "--cluster", "c", "--storage", "runs"),
    }
    words = ["launch", target, "first.py", "--dry-run", *required.get(target, ())]
    program = (
        "import sys, json; from dynexit.cli.main import main\n"
        f"code = main({words!r})\n"
        "print(json.dumps([code, 'jax' in sys.modules, 'numpy' in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    code, *loaded = json.loads(done.stdout.splitlines()[-1])
    assert code == 0 and loaded == [False, False]
