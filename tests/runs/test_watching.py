"""`dynexit watch`: the state of a run from its files, and what is shown of it."""

import datetime
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from dynexit.cli.main import main
from dynexit.core.folder_lock import in_use
from dynexit.runs.watching.follow import Follower
from dynexit.runs.watching.holder import holder_of
from dynexit.runs.watching.screen import facts, sparkline
from dynexit.runs.watching.state import WatchedRun


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "first"
    folder.mkdir()
    recorded = {"name": "digits", "experiment": "x.py", "sha256": "0"}
    recorded["settings"] = {"training": {"steps": 100}}
    (folder / "settings.json").write_text(json.dumps(recorded))
    return folder


def append(folder, *records):
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def evaluated(step, accuracies, **more):
    exits = {f"eval_accuracy_exit_{e}": a for e, a in enumerate(accuracies)}
    exits |= {f"eval_loss_exit_{e}": 1 - a for e, a in enumerate(accuracies)}
    return {
        "step": step,
        "loss": 10 / step,
        "seconds": step / 2,
        "examples_per_second": 64.0,
        "eval_accuracy": sum(accuracies) / len(accuracies),
        **exits,
        **more,
    }


def test_records_are_read_once_and_again_after_the_file_was_replaced(run):
    path = run / "metrics.jsonl"
    follower = Follower(path)
    assert follower.read() == ([], False)
    append(run, {"step": 1}, {"step": 2})
    assert [r["step"] for r in follower.read()[0]] == [1, 2]
    assert follower.read() == ([], False)
    with path.open("ab") as file:
        file.write(b'not json\n{"step": 3}\n{"step"')
    assert [r["step"] for r in follower.read()[0]] == [3]
    with path.open("ab") as file:
        file.write(b": 4}\n")
    assert [r["step"] for r in follower.read()[0]] == [4]
    draft = run / "draft"
    draft.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4}\n{"step": 5}\n')
    os.replace(draft, path)  # as a resumed run does
    records, replaced = follower.read()
    assert replaced and [r["step"] for r in records] == [1, 2, 3, 4, 5]


def test_a_running_run(run):
    append(run, {"step": 1, "loss": 9.0, "seconds": 0.5}, evaluated(20, [0.25, 0.5]))
    append(run, evaluated(40, [0.5, 0.875], halting_entropy=0.25), evaluated(60, [0.5, 0.75]))
    checkpoint = run / "checkpoints" / "00000050"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").touch()
    (run / "checkpoints" / "00000060").mkdir()  # not complete
    os.utime(checkpoint / "manifest.json", (time.time() - 90, time.time() - 90))
    with in_use(run):
        state = WatchedRun(run).look()
    assert (state.status, state.step, state.steps) == ("running", 60, 100)
    assert state.seconds_left == pytest.approx(20)  # half a second an update
    assert state.exits[1].accuracy == 0.75 and state.exits[1].loss == 0.25
    assert state.best == (40, "accuracy", 0.6875)
    assert state.halting == {"halting_entropy": 0.25}
    assert state.checkpoint is not None and state.checkpoint[0] == 50
    assert state.checkpoint[1] == pytest.approx(90, abs=5)
    assert state.holder is not None and state.holder.process == os.getpid() and state.holder.alive
    assert state.warnings == []
    shown = dict(facts(state))
    assert shown["update"] == "60 of 100 (60%), 20 s left"
    assert shown["checkpoint"].startswith("update 50, 0:01:3")
    assert shown["best"] == "mean accuracy 68.75% at update 40"


def test_a_resumed_run_forgets_what_was_removed(run):
    append(run, evaluated(20, [0.5]), evaluated(40, [0.9]))
    watched = WatchedRun(run)
    assert watched.look().best == (40, "accuracy", 0.9)
    draft = run / "draft"
    draft.write_text(json.dumps(evaluated(20, [0.5])) + "\n")
    os.replace(draft, run / "metrics.jsonl")
    state = watched.look()
    assert state.step == 20 and state.best == (20, "accuracy", 0.5) and len(state.losses) == 1


def test_stopped_finished_and_ended_runs(run):
    append(run, evaluated(100, [0.5]))
    watched = WatchedRun(run)
    assert watched.look().status == "stopped"
    (run / "report.json").write_text("{}")
    assert watched.look().status == "finished"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    started = datetime.datetime.now().isoformat()
    lock = {"process": ended.pid, "host": socket.gethostname(), "started": started}
    (run / "lock.json").write_text(json.dumps(lock))
    assert watched.look().status == "ended"
    (run / "lock.json").write_text(json.dumps({**lock, "host": "elsewhere"}))
    holder = holder_of(run)
    assert holder is not None and holder.alive is None and watched.look().status == "running"
    (run / "lock.json").write_text("{")
    assert holder_of(run) is None


def test_a_stall_is_a_warning_only_while_the_run_is_held(run):
    append(run, evaluated(20, [0.5]))
    old = time.time() - 3600
    os.utime(run / "metrics.jsonl", (old, old))
    assert WatchedRun(run, stall=10).look().warnings == []
    with in_use(run):
        assert WatchedRun(run, stall=10).look().warnings == ["no record for 60 minutes"]
        assert WatchedRun(run, stall=0).look().warnings == []
        assert WatchedRun(run, stall=61).look().warnings == []


def test_rare_records_are_no_stall(run):
    append(run, {"step": 10, "seconds": 10.0}, {"step": 20, "seconds": 3010.0})
    old = time.time() - 3600
    os.utime(run / "metrics.jsonl", (old, old))
    with in_use(run):
        assert WatchedRun(run, stall=10).look().warnings == []


def test_values_that_are_not_finite_and_collapsed_halting_are_warnings(run):
    append(run, *({"step": s, "loss": 1.0, "at_limit": 1.0} for s in (1, 2, 3)))
    append(run, {"step": 4, "loss": None})
    first, second = WatchedRun(run).look().warnings
    assert "collapsed to the limit" in first and second == "step 4: the loss is not finite"


def test_losses_have_no_accuracy(run):
    append(run, {"step": 1, "eval_loss": 2.0}, {"step": 2, "eval_loss": 1.0})
    append(run, {"step": 3, "eval_loss": 1.5})
    assert WatchedRun(run).look().best == (2, "loss", 1.0)


def test_once_prints_one_run_in_full_and_several_in_lines(run, capsys):
    append(run, evaluated(20, [0.25, 0.5]))
    before = sorted((p.name, p.stat().st_mtime_ns) for p in run.iterdir())
    assert main(["watch", str(run), "--once"]) == 0
    full = capsys.readouterr().out
    for words in ("20 of 100 (20%)", "50.00%", "0.7500", "stopped; the same command resumes it"):
        assert words in full
    assert sorted((p.name, p.stat().st_mtime_ns) for p in run.iterdir()) == before
    second = run.parent / "second"
    second.mkdir()
    (second / "settings.json").write_text((run / "settings.json").read_text())
    assert main(["watch", str(run.parent)]) == 0  # no terminal: once; a sweep's folder
    lines = capsys.readouterr().out.splitlines()
    assert any("first" in line and "20/100" in line for line in lines)
    assert any("second" in line and "0/100" in line for line in lines)


def test_characters_that_control_a_terminal_are_not_shown(run, capsys):
    append(run, {"step": 1, "loss": 1.0})
    lock = {"process": 1, "host": "a\x1b[2J", "started": "[red]now"}
    (run / "lock.json").write_text(json.dumps(lock))
    assert main(["watch", str(run), "--once"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown and "a?[2J since [red]now" in shown


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["nowhere"], "nowhere is not a run folder"),
        (["nowhere", "--every", "0"], "--every must be above 0, got 0"),
        (["nowhere", "--stall", "-1"], "--stall must be at least 0, got -1"),
    ],
)
def test_refusals(words, sentence, capsys):
    assert main(["watch", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_watching_loads_no_jax(run):
    append(run, evaluated(20, [0.25, 0.5]))
    program = (
        "import sys\nfrom dynexit.cli.main import main\n"
        f"main(['watch', {str(run)!r}, '--once'])\nassert 'jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_a_sparkline_has_at_most_its_width():
    assert len(sparkline([float(k) for k in range(1000)])) == 48
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([float(k) for k in range(8)]) == "▁▂▃▄▅▆▇█"
