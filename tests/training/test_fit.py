"""`fit` end to end: it learns, equal seeds give equal bits, and a run that stopped resumes with the
bits of an uninterrupted one.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.core.types import Carried
from dynexit.engine.run import run_all
from dynexit.training.checkpointing.checkpoints import named_leaves, restore, restore_params
from dynexit.training.logs import read_records, without_clock
from dynexit.training.loop import NonFiniteLoss, fit
from dynexit.training.parallel.mesh import make_mesh
from dynexit.training.state import create_state


def different(a, b):
    """Names of the leaves whose bits differ."""
    a, b = named_leaves(a), named_leaves(b)
    assert a.keys() == b.keys()
    return [name for name in a if np.asarray(a[name]).tobytes() != np.asarray(b[name]).tobytes()]


def history(folder):
    return [without_clock(record) for record in read_records(folder / "metrics.jsonl")]


def saved_state(toy, folder, settings):
    return restore(folder, create_state(toy.build(), settings, 0, make_mesh()))


def steps_kept(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def train(toy, folder, seed=3, experiment=None, resume=True, **changes):
    settings = dataclasses.replace(toy.SETTINGS, **changes)
    return fit(experiment or toy.build(), settings, folder, seed, resume=resume, progress=False)


def test_it_learns_records_and_keeps_the_newest_checkpoints(toy, tmp_path):
    fitted = train(toy, tmp_path, steps=61)
    records = read_records(tmp_path / "metrics.jsonl")
    assert (fitted.step, fitted.stopped) == (61, False)
    assert records[-1]["loss"] < 0.5 * records[0]["loss"]
    assert [r["step"] for r in records] == [1, *range(3, 61, 3), 61]
    assert fitted.metrics == without_clock(records[-1])
    assert {
        "loss",
        "grad_norm",
        "learning_rate",
        "last_exit_loss",
        "seconds",
        "examples_per_second",
    } < records[0].keys()
    assert steps_kept(tmp_path) == [60, 61]
    params, step = restore_params(tmp_path, jax.eval_shape(toy.init, jax.random.key(0)))
    assert step == 61 and different(fitted.params, params) == []


def test_equal_seeds_give_equal_bits_and_other_seeds_do_not(toy, tmp_path):
    first, again, other = (
        train(toy, tmp_path / name, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert different(first.params, again.params) == []
    assert history(tmp_path / "a") == history(tmp_path / "b")
    assert len(different(first.params, other.params)) == len(jax.tree.leaves(first.params))


def test_a_real_signal_stops_the_run_and_resuming_gives_the_bits_of_an_uninterrupted_one(
    toy, tmp_path
):
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    program = [sys.executable, Path(toy.__file__), cut]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while len(history(cut)) < 4 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    step, stopped = printed.split()
    assert stopped == "True" and 15 <= int(step) < toy.long_settings().steps
    assert steps_kept(cut) == [int(step)]
    fitted = fit(toy.build(), toy.long_settings(), cut, seed=3, progress=False)
    straight = fit(toy.build(), toy.long_settings(), whole, seed=3, progress=False)
    assert (fitted.step, fitted.stopped) == (straight.step, False)
    assert fitted.metrics == straight.metrics
    ends = [saved_state(toy, folder, toy.long_settings()) for folder in (cut, whole)]
    assert len(named_leaves(ends[0].tree)) > 10 and different(ends[0].tree, ends[1].tree) == []
    assert history(cut) == history(whole)


def test_the_first_interrupt_stops_and_handlers_are_restored(toy, tmp_path):
    def interrupting(seed, step, size):
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return toy.batch(seed, step, size)

    experiment = toy.build()
    experiment = experiment._replace(train=experiment.train._replace(batch=interrupting))
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    fitted = train(toy, tmp_path, experiment=experiment, steps=5000)
    assert fitted.stopped and 3 < fitted.step < 5000
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert fitted.step in steps_kept(tmp_path)


def test_a_run_killed_in_a_save_resumes_from_the_checkpoint_before(toy, tmp_path):
    train(toy, tmp_path / "whole")
    train(toy, tmp_path / "killed")
    (tmp_path / "killed" / "checkpoints" / "00000012" / "manifest.json").unlink()
    with pytest.warns(
        RuntimeWarning,
        match=r"00000012 is skipped: it has no manifest.json",
    ):
        train(toy, tmp_path / "killed")
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
    ends = [saved_state(toy, tmp_path / name, toy.SETTINGS) for name in ("whole", "killed")]
    assert ends[0].step == ends[1].step == 12 and different(ends[0].tree, ends[1].tree) == []


def test_a_carry_over_several_updates_is_in_the_checkpoint(toy, tmp_path):
    """A slot keeps its inputs for three updates; the run that was killed resumes with them."""

    def begin(model, params, inputs, labels):
        return {"inputs": inputs, "labels": labels, "left": jnp.zeros(labels.shape, jnp.int32)}

    def loss(model, params, carry, inputs, labels, key, progress):
        free = carry["left"] == 0
        inputs, labels = (
            jnp.where(free[:, None], inputs, carry["inputs"]),
            jnp.where(free, labels, carry["labels"]),
        )
        outputs = run_all(model.steps(params), model.embed(params, inputs), model.depth)
        losses, metrics = toy.objective(outputs, labels, progress)
        return (
            losses,
            metrics,
            {"inputs": inputs, "labels": labels, "left": jnp.where(free, 2, carry["left"] - 1)},
        )

    experiment = toy.build()
    experiment = experiment._replace(
        method=experiment.method._replace(objective=None, carried=Carried(begin, loss))
    )
    for name in ("whole", "killed"):
        train(toy, tmp_path / name, experiment=experiment)
    (tmp_path / "killed" / "checkpoints" / "00000012" / "manifest.json").unlink()
    with pytest.warns(RuntimeWarning, match="00000012 is skipped"):
        train(toy, tmp_path / "killed", experiment=experiment)
    template = create_state(experiment, toy.SETTINGS, 0, make_mesh())
    ends = [restore(tmp_path / name, template) for name in ("whole", "killed")]
    assert {"carry/inputs", "carry/labels", "carry/left"} < named_leaves(ends[0].tree).keys()
    # twelve updates are four times three
    assert np.asarray(ends[0].tree.carry["left"]).tolist() == [0] * 8
    assert different(ends[0].tree, ends[1].tree) == [] and history(tmp_path / "whole") == history(
        tmp_path / "killed"
    )


def test_a_finished_run_is_only_read(toy, tmp_path):
    first = train(toy, tmp_path)
    again = train(toy, tmp_path, experiment=toy.build()._replace(train=None))
    assert again.metrics == first.metrics and different(first.params, again.params) == []


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_state_before_it(toy, tmp_path):
    def poisoned(seed, step, size):
        batch = toy.batch(seed, step, size)
        if step == 6:
            batch["inputs"][2, 1] = np.nan
        return batch

    experiment = toy.build()
    experiment = experiment._replace(train=experiment.train._replace(batch=poisoned))
    with pytest.raises(
        NonFiniteLoss, match=r"step 7: loss nan, gradient norm nan; the state after step 6 is saved"
    ):
        train(toy, tmp_path / "bad", experiment=experiment)
    kept = saved_state(toy, tmp_path / "bad", toy.SETTINGS)
    assert kept.step == 6 == int(kept.tree.step)
    records = history(tmp_path / "bad")
    assert [(r["step"], r["loss"] is None) for r in records[2:]] == [(6, False), (7, True)]
    train(toy, tmp_path / "bad")  # without the NaN it resumes, and loses nothing
    train(toy, tmp_path / "good")
    ends = [saved_state(toy, tmp_path / name, toy.SETTINGS) for name in ("bad", "good")]
    assert different(ends[0].tree, ends[1].tree) == []


def test_an_exception_of_the_source_is_raised_and_no_thread_remains(toy, tmp_path):
    def failing(seed, step, size):
        if step == 5:
            raise OSError("no disk")
        return toy.batch(seed, step, size)

    experiment = toy.build()
    experiment = experiment._replace(train=experiment.train._replace(batch=failing))
    with pytest.raises(OSError, match="no disk"):
        train(toy, tmp_path, experiment=experiment)
    assert steps_kept(tmp_path) == [4]
    assert not [
        t.name for t in threading.enumerate() if t.name.startswith(("prefetch", "checkpoints"))
    ]


def test_errors_name_the_argument(toy, tmp_path):
    train(toy, tmp_path, steps=4)
    with pytest.raises(FileExistsError, match="already holds checkpoints"):
        train(toy, tmp_path, resume=False)
    with pytest.raises(ValueError, match=r"`seed` is 9, but the run in .* was started with 3"):
        train(toy, tmp_path, seed=9)
    with pytest.raises(ValueError, match=r"`steps` is 2, but the run in .* is already at step 4"):
        train(toy, tmp_path, steps=2)
    with pytest.raises(ValueError, match=r"`batch_size` .* 4 devices .* got 10; .* is 8"):
        train(toy, tmp_path, batch_size=10)
    for wrong, text in (
        ({"optimizer": "adma"}, "`settings`: optimizer .*'adma'"),
        ({"log_every": 0, "steps": -3}, "`settings`: steps .*-3; log_every .*0"),
        ({"eval_every": -1}, "`settings`: eval_every .*-1"),
        ({"learning_rate": float("inf")}, "`settings`: learning_rate .*inf"),
    ):
        with pytest.raises(ValueError, match=text):
            train(toy, tmp_path / "wrong", **wrong)
    shifted = lambda seed, step, size: {
        **(drawn := toy.batch(seed, step, size)),
        "labels": drawn["labels"] + 1,
    }
    experiment = toy.build()
    experiment = experiment._replace(train=experiment.train._replace(batch=shifted))
    with pytest.raises(ValueError, match=r"`experiment.train`"):
        train(toy, tmp_path / "wrong", experiment=experiment)


def test_it_runs_outside_the_main_thread_where_signals_cannot_be_caught(toy, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(toy, tmp_path, steps=4)))
    thread.start()
    thread.join(60)
    assert results[0].step == 4
