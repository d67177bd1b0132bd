"""Every experiment's smoke twin does the whole job: train, calibrate, evaluate, report."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dynexit.cli.main import main
from dynexit.core.settings import Calibration, Evaluation, Training, validate
from dynexit.runs.experiment_file import load

FILES = sorted((Path(__file__).parents[2] / "experiments").glob("*.py"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A data folder with drawn pictures in the place of Fashion-MNIST, through the same records and
    files.
    """
    from dynexit.data import store
    from dynexit.data.vision import fashion_mnist

    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    label = lambda rows: random.integers(0, 10, rows).astype(np.int32)
    picture = lambda labels: (
        random.integers(0, 40, (len(labels), 28, 28, 1)) + 20 * labels[:, None, None, None]
    ).astype(np.uint8)
    splits = {split: label(rows) for split, rows in (("train", 5400), ("test", 300))}
    store.prepare(
        fashion_mnist.RECIPE,
        {s: (picture(labels), labels) for s, labels in splits.items()},
        folder,
        progress=False,
    )
    return folder


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_smoke_twin_runs(file, prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DYNEXIT_DATA", str(prepared))
    assert main(["train", str(file), "--smoke", "--run", str(tmp_path / "run")]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (
        report["depth"] == report["depth_of_exit"][-1]
        and 1 <= report["mean_depth"] <= report["depth"]
    )
    assert len(report["accuracy_per_exit"]) == len(report["depth_of_exit"])
    assert report["live_equals_replay"] > 0.98 and report["examples"] == report["data"][
        "test"
    ] == sum(report["rows_per_exit"])
    assert str(tmp_path / "run") in capsys.readouterr().out


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_settings_are_whole_and_in_range(file):
    found = load(file)
    for settings in (found.settings, found.smoke):
        assert type(settings) is type(found.settings) and validate(settings) == []
        kinds = [
            type(getattr(settings, name))
            for name in ("training", "calibration", "evaluation", "seed")
        ]
        assert kinds == [Training, Calibration, Evaluation, int]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_head_says_command_hardware_and_what_to_expect(file):
    for words in (f"dynexit train experiments/{file.name}", "Hardware: ", "Expect: "):
        assert words in load(file).summary


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_loading_an_experiment_loads_no_jax(file):
    program = f"import sys; from dynexit.runs.experiment_file import load; load({str(file)!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"jax", "numpy", "flax"} & set(done.stdout.split())


def test_experiments_are_short_and_share_no_block():
    lines = {f: [l.strip() for l in f.read_text().splitlines() if l.strip()] for f in FILES}
    assert statistics.median(len(f.read_text().splitlines()) for f in FILES) <= 45
    seen, shared = {}, []
    for file, text in lines.items():
        for k in range(len(text) - 5):
            other = seen.setdefault(tuple(text[k : k + 6]), file)
            if other != file:
                shared.append((other.name, file.name, text[k : k + 6]))
    assert shared == []


def test_a_teacher_that_is_not_there_is_named_with_the_command_that_trains_it(tmp_path, capsys):
    file, teacher = next(f for f in FILES if f.stem == "digits_raptor"), str(tmp_path / "teacher")
    assert (
        main(["train", str(file), "--model.teacher", teacher, "--run", str(tmp_path / "run")]) == 2
    )
    said = capsys.readouterr().err
    assert (
        f"model.teacher is {teacher}, which does not exist" in said and f"--run {teacher}`" in said
    )
    assert not (tmp_path / "run").exists()


def test_unprepared_data_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DYNEXIT_DATA", str(tmp_path))
    file = next(f for f in FILES if f.stem == "fashion_vit")
    assert main(["train", str(file), "--smoke", "--run", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert (
        "fashion_mnist is not prepared" in said
        and "Run `dynexit data prepare fashion_mnist`" in said
    )
    assert not (tmp_path / "run").exists()
