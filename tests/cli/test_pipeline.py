"""The main job through the command line, on the template's smoke settings: one training, shared by
the tests of this file.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from dynexit.cli.main import main
from dynexit.runs.experiment_file import SettingsError

KEYS = {
    "accuracy_full",
    "accuracy_dynamic",
    "mean_depth",
    "depth",
    "seconds_full",
    "seconds_dynamic",
    "speedup",
    "efficiency",
    "flops_ratio",
}


@pytest.fixture(scope="module", autouse=True)
def compiled_programs(tmp_path_factory):
    """Programs that several commands of this file compile alike are compiled once."""
    names = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def template(request):
    return request.config.rootpath / "experiments" / "template.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, template):
    folder = tmp_path_factory.mktemp("runs") / "template"
    assert main(["train", str(template), "--smoke", "--run", str(folder)]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(trained, tmp_path / "run")


def report(folder):
    return json.loads((folder / "report.json").read_text())


def test_the_run_folder_holds_everything(trained):
    for name in ("settings.json", "metrics.jsonl", "calibration.json", "report.json", "report.md"):
        assert (trained / name).stat().st_size > 100
    for name in ("accuracy.png", "depth.png", "examples.png"):
        assert (trained / name).read_bytes().startswith(b"\x89PNG") and f"]({name})" in (
            trained / "report.md"
        ).read_text()
    recorded = json.loads((trained / "settings.json").read_text())
    assert recorded["settings"]["model"] == {"width": 32, "depth": 3} and recorded["command"][
        :2
    ] == ["dynexit", "train"]


def test_the_report_is_consistent(trained):
    r = report(trained)
    assert KEYS <= set(r)
    assert r["examples"] == sum(r["rows_per_exit"]) == 450 and r["rows_timed"] == 464
    assert sum(n > 0 for n in r["rows_per_exit"]) > 1
    np.testing.assert_allclose(
        r["mean_depth"], np.dot(r["rows_per_exit"], r["depth_of_exit"]) / 450
    )
    np.testing.assert_allclose(
        r["flops_ratio"], np.dot(r["rows_per_exit"], r["flops_until_exit"]) / 450 / r["flops_full"]
    )
    np.testing.assert_allclose(r["speedup"], r["seconds_full"] / r["seconds_dynamic"])
    np.testing.assert_allclose(
        r["efficiency"], r["seconds_full"] * r["flops_ratio_blocks"] / r["seconds_dynamic"]
    )
    assert (
        r["accuracy_full"] == r["accuracy_per_exit"][-1]
        and r["live_equals_replay"] > 0.99
        and r["nan_exits"] == 0
    )
    assert r["calibration"]["split"] == "calibration" and r["calibration"]["examples"] == 347


def test_a_finished_run_is_measured_again_and_not_trained(run, template, capsys):
    before, records = report(run), (run / "metrics.jsonl").read_bytes()
    assert main(["train", str(template), "--smoke", "--run", str(run)]) == 0
    assert (
        "has finished before: its weights are calibrated and measured again"
        in capsys.readouterr().err
    )
    assert (run / "metrics.jsonl").read_bytes() == records
    assert report(run)["rows_per_exit"] == before["rows_per_exit"]


def test_another_rule_is_kept_and_a_changed_file_is_said_aloud(run, template, tmp_path, capsys):
    assert main(["calibrate", str(run), "--budget", "0.7"]) == 0
    calibrated = report(run)
    assert calibrated["calibration"]["rule"] == {
        "accept_loss": None,
        "budget": 0.7,
        "max_negative_flips": None,
        "risk": None,
        "delta": 0.1,
    }
    assert calibrated["schema_version"] == 1 and calibrated["calibration"]["guarantee"]
    assert (
        calibrated["calibration"]["flops_ratio"] <= 0.7
        and "at most" in (run / "report.md").read_text()
    )
    assert "WARNING" not in capsys.readouterr().err
    assert main(["calibrate", str(run), "--budget", "0.01"]) == 1
    assert (
        "`budget` of 0.01 of full depth's FLOPs cannot be met: the cheapest point costs 0."
        in capsys.readouterr().err
    )
    assert report(run)["calibration"] == calibrated["calibration"]
    changed = tmp_path / "mine.py"
    changed.write_text(template.read_text() + "# changed\n")
    assert main(["evaluate", str(run), "--experiment", str(changed)]) == 0
    said = capsys.readouterr().err
    assert "WARNING" in said and "mine.py" in said and "sha256" in said
    assert report(run)["rows_per_exit"] == calibrated["rows_per_exit"]


def test_evaluation_measures_at_the_recorded_point_and_chooses_nothing(run, monkeypatch):
    before, recorded = report(run), json.loads((run / "calibration.json").read_text())
    # every entropy is below it
    changed = {**recorded, "operating_point": {"threshold": 9.0}}
    (run / "calibration.json").write_text(json.dumps(changed))

    def refuse(*args, **kwargs):
        raise AssertionError("evaluation must not calibrate or count FLOPs again")

    monkeypatch.setattr(sys.modules["dynexit.evaluation.calibrate"], "calibrate", refuse)
    monkeypatch.setattr(sys.modules["dynexit.evaluation.measure"], "costs_of", refuse)
    assert main(["evaluate", str(run), "--batch-size", "64"]) == 0
    after = report(run)
    assert after["rows_per_exit"] == [450, 0, 0] and before["rows_per_exit"] != [450, 0, 0]
    assert after["batch_size"] == 64 and after["flops_full"] == before["flops_full"]
    assert json.loads((run / "calibration.json").read_text()) == changed


def test_a_run_without_an_operating_point_is_calibrated_and_a_damaged_one_refused(run, capsys):
    before = report(run)
    (run / "calibration.json").unlink()
    assert main(["evaluate", str(run)]) == 0
    assert "an operating point is chosen first" in capsys.readouterr().err
    assert report(run)["rows_per_exit"] == before["rows_per_exit"]
    for content, words in (("{", "is damaged"), ("{}", "has schema None")):
        (run / "calibration.json").write_text(content)
        assert main(["evaluate", str(run)]) == 2
        assert words in capsys.readouterr().err
    assert main(["evaluate", str(run), "--batch-size", "0"]) == 2
    assert "--batch-size must be at least 1, got 0" in capsys.readouterr().err


def test_a_risk_is_controlled_on_half_of_the_rows(run, capsys):
    assert main(["calibrate", str(run), "--risk", "0.2", "--delta", "0.2"]) == 0
    found = report(run)["calibration"]
    assert found["rule"]["risk"] == 0.2 and found["examples"] == 174
    assert "with probability 0.8" in found["guarantee"]
    assert found["guarantee"] in (run / "report.md").read_text()
    assert main(["calibrate", str(run), "--budget", "0.7", "--delta", "0.2"]) == 2
    assert "--delta goes with --risk" in capsys.readouterr().err


def test_a_damaged_newest_checkpoint_falls_back_with_a_warning(run):
    steps = sorted((run / "checkpoints").iterdir(), key=lambda p: int(p.name))
    assert [int(p.name) for p in steps] == [30, 60]
    for path in steps[-1].rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    with pytest.warns(RuntimeWarning, match="60 is skipped"):
        assert main(["evaluate", str(run)]) == 0
    assert report(run)["training"]["step"] == 30


def test_the_curves_of_training_are_drawn(trained):
    assert (trained / "training.png").read_bytes().startswith(b"\x89PNG")


def test_a_checkpoint_is_chosen_by_kind_or_step(run, capsys):
    import dynexit as dx

    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = {r["step"]: r["eval_accuracy"] for r in records if "eval_accuracy" in r}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert list(scores) == list(range(6, 61, 6))
    assert dx.runs.trained(run, checkpoint="best").step == best
    assert dx.runs.trained(run, checkpoint=30).step == 30
    assert main(["evaluate", str(run), "--checkpoint", "30"]) == 0
    assert report(run)["training"]["step"] == 30
    capsys.readouterr()
    assert main(["evaluate", str(run), "--checkpoint", "7"]) == 2
    assert f"steps 30, 60; best {best}" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--checkpoint", "latest"]) == 2
    assert "--checkpoint" in capsys.readouterr().err


def test_runs_are_drawn_in_one_figure(trained, run, tmp_path, capsys):
    out = tmp_path / "both.png"
    assert main(["plot", str(trained), str(run), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG") and str(out) in capsys.readouterr().out
    assert main(["plot", str(run), "--out", "both.xyz"]) == 2
    assert "--out must end in .png, .pdf or .svg, got both.xyz" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_is_refused(run, capsys):
    shutil.rmtree(run / "checkpoints")
    assert main(["evaluate", str(run)]) == 2
    assert "holds no checkpoint: nothing was trained there yet" in capsys.readouterr().err


def test_what_the_devices_refuse_is_said_without_a_traceback(tmp_path, template, capsys):
    assert (
        main(
            [
                "train",
                str(template),
                "--smoke",
                "--training.batch-size",
                "30",
                "--run",
                str(tmp_path / "run"),
            ]
        )
        == 2
    )
    said = capsys.readouterr().err
    assert (
        "built with --training.batch-size 30: `batch_size` must be divisible by the 4 devices"
        in said
    )
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_names_its_step(tmp_path, template, capsys):
    words = [
        "--smoke",
        "--training.learning-rate",
        "1e38",
        "--training.warmup",
        "0",
        "--training.clip",
        "0",
    ]
    assert main(["train", str(template), *words, "--run", str(tmp_path / "run")]) == 1
    assert "dynexit: step 2: loss" in capsys.readouterr().err
    assert not (tmp_path / "run" / "report.json").exists()


def test_a_terminated_training_says_how_to_go_on(tmp_path, template):
    folder = tmp_path / "run"
    words = ["train", str(template), "--smoke", "--training.steps", "1000000", "--run", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-m", "dynexit.cli.main", *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ},
    )
    until = time.monotonic() + 60
    while not (folder / "checkpoints").exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in said
    line = said.strip().splitlines()[-1]
    assert line.startswith("stopped at step ") and line.endswith(
        f"of 1000000, resume with: dynexit {' '.join(words)}"
    )
    assert int(line.split()[3]) > 0


def test_a_run_is_opened_from_python(run, monkeypatch):
    import dynexit as dx

    monkeypatch.chdir(run.parent)
    opened = dx.runs.trained(run.name)  # as the README does: a path from where one stands
    assert (
        opened.step == opened.settings.training.steps
        and opened.experiment.model.depth == opened.settings.model.depth
    )
    inputs = opened.experiment.test.examples()["inputs"][:4]
    state = opened.experiment.model.embed(opened.params, opened.experiment.prepare(inputs))
    assert (
        dx.run_all(
            opened.experiment.model.steps(opened.params), state, opened.experiment.model.depth
        ).shape[1]
        == 4
    )
    with pytest.raises(SettingsError, match="is not a run folder"):
        dx.runs.trained(run / "checkpoints")
