"""Evaluation during training: its values, its effect on the run (none), and the best checkpoint."""

import dataclasses
import itertools
import json
import math
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from dynexit import methods
from dynexit.core.settings import Training
from dynexit.core.types import Source
from dynexit.training import evals
from dynexit.training.checkpointing.checkpoints import CheckpointError, restore, restore_params
from dynexit.training.checkpointing.saver import best_score
from dynexit.training.logs import CLOCK, EVAL, read_records, without_clock
from dynexit.training.loop import fit
from dynexit.training.parallel.mesh import make_mesh
from dynexit.training.parallel.placement import put_batch

ANSWER = lambda output: jnp.argmax(output, axis=-1).astype(jnp.int32)


def with_accuracy(toy):
    experiment = toy.build()
    return experiment._replace(method=experiment.method._replace(predict=ANSWER))


def train(toy, folder, experiment=None, seed=3, every=3, **changes):
    options = {name: changes.pop(name) for name in ("evals", "rules", "mesh") if name in changes}
    settings = dataclasses.replace(toy.SETTINGS, eval_every=every, **changes)
    experiment = experiment or with_accuracy(toy)
    return fit(experiment, settings, folder, seed, progress=False, **options)


def history(folder):
    return [without_clock(record) for record in read_records(folder / "metrics.jsonl")]


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def params_of(toy, folder, checkpoint):
    return restore_params(folder, jax.eval_shape(toy.init, jax.random.key(0)), checkpoint)


def scores_in_turn(monkeypatch, *values):
    """Replaces the score of the evaluations by these numbers."""
    given = itertools.chain(values)
    monkeypatch.setattr(evals, "score", lambda metrics: next(given))


def plain_evaluation(toy, params, every=1):
    """Accuracy and loss of every exit, one example and one block after the other."""
    examples = {name: array[::every] for name, array in toy.points().items()}
    right, losses = np.zeros(toy.BLOCKS), np.zeros(toy.BLOCKS)
    for x, y in zip(examples["inputs"], examples["labels"], strict=True):
        h = x @ params["embed"]["kernel"]
        for k in range(toy.BLOCKS):
            h = h + np.tanh(h @ params["blocks"]["kernel"][k] + params["blocks"]["bias"][k])
            logits = h @ params["head"]["kernel"]
            right[k] += np.argmax(logits) == y
            losses[k] += np.log(np.exp(logits).sum()) - logits[y]
    return right / len(examples["labels"]), losses / len(examples["labels"])


@pytest.mark.parametrize(
    "batch_size,rows,every", [(20, None, 1), (48, 1024, 1), (64, 48, 1), (8, 12, 4)]
)
def test_values_equal_a_plain_loop_over_the_calibration_split(toy, batch_size, rows, every):
    experiment = with_accuracy(toy)._replace(train=None, test=None, augment=None)
    settings = dataclasses.replace(toy.SETTINGS, batch_size=batch_size, eval_rows=rows)
    params = toy.init(jax.random.key(5))
    metrics = evals.make_evaluate(experiment, settings, make_mesh())(params)
    accuracy, loss = plain_evaluation(toy, jax.device_get(params), every)
    assert len(set(accuracy)) > 1  # exits differ, so their order is tested
    for e in range(toy.BLOCKS):
        assert metrics[f"eval_accuracy_exit_{e}"] == pytest.approx(accuracy[e], abs=1e-7)
        assert metrics[f"eval_loss_exit_{e}"] == pytest.approx(loss[e], rel=1e-5)
    assert metrics["eval_accuracy"] == pytest.approx(accuracy.mean(), abs=1e-7)
    assert metrics["eval_objective"] == pytest.approx(loss.mean(), rel=1e-5)
    assert metrics["eval_last_exit_loss"] == pytest.approx(loss[-1], rel=1e-5)
    assert evals.in_short(metrics) == f"calibration accuracy {accuracy[-1]:.4f}"


def test_it_is_traced_once_and_the_split_is_read_once(toy):
    traced, read = [], []
    experiment = with_accuracy(toy)
    inner = experiment.model.embed
    embed = lambda p, x: (traced.append(x.shape), inner(p, x))[1]
    examples = lambda: (read.append(0), toy.points())[1]
    experiment = experiment._replace(
        model=experiment.model._replace(embed=embed),
        calibration=Source("calibration", toy.batch, examples, toy.EXAMPLES),
    )
    evaluate = evals.make_evaluate(experiment, toy.SETTINGS, make_mesh())
    first, second = (evaluate(toy.init(jax.random.key(k))) for k in (0, 1))
    assert traced == [(8, 4)] and read == [0] and first != second


OUTPUTS = {
    "logits": jax.random.normal(jax.random.key(0), (3, 8, 5)),
    "halt_logit": jax.random.normal(jax.random.key(1), (3, 8)),
    "accumulated": jnp.cumsum(jax.random.uniform(jax.random.key(2), (3, 8)), 0).clip(0, 1),
    "gate": jax.random.uniform(jax.random.key(3), (3, 8)),
}


@pytest.mark.parametrize(
    "method",
    [methods.confidence_exits(), methods.pondernet(), methods.act(), methods.fixed_depth()],
)
def test_the_mean_over_rows_of_an_objective_is_that_of_the_batch(method):
    outputs = dict(OUTPUTS)
    labels = jnp.arange(8) % 5
    losses, metrics = method.objective(outputs, labels, jnp.float32(1))
    by_row = jax.vmap(evals._of_one_row(method.objective), (1, 0))(outputs, labels)
    np.testing.assert_allclose(by_row[0], losses, rtol=2e-5)
    assert by_row[1].keys() == metrics.keys() and metrics
    for name, value in metrics.items():
        np.testing.assert_allclose(by_row[1][name].mean(), value, rtol=2e-5, err_msg=name)


def test_outputs_without_logits_that_fit_the_labels_have_no_loss():
    labels, output = jnp.zeros(8, jnp.int32), {name: a[0] for name, a in OUTPUTS.items()}
    assert evals._logits(output, labels) is output["logits"]
    assert evals._logits({"halt_logit": output["halt_logit"]}, labels) is None
    assert evals._logits(output["halt_logit"], labels) is None
    assert evals._logits(output["logits"][..., :1], labels) is None
    assert evals._logits(output["logits"], jnp.zeros(8)) is None
    assert evals._logits(output["logits"], jnp.zeros((8, 5), jnp.int32)) is None


@pytest.mark.parametrize(
    "every,due", [(None, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 21]), (0, []), (8, [8, 16, 21])]
)
def test_when_it_is_due(every, due):
    settings = Training(steps=21, eval_every=every)
    assert [s for s in range(1, 22) if evals.is_due(settings, s)] == due


def test_it_changes_no_bit_of_training(toy, tmp_path):
    with_evals = train(toy, tmp_path / "with", every=5)
    without = train(toy, tmp_path / "without", every=0)
    assert bits(with_evals.params) == bits(without.params)
    training = lambda record: {n: v for n, v in record.items() if not n.startswith(EVAL)}
    records = [training(record) for record in history(tmp_path / "with")]
    assert [r for r in records if r["step"] not in (5, 10)] == history(tmp_path / "without")
    assert {5, 10, 12} == {
        r["step"] for r in history(tmp_path / "with") if "eval_accuracy_exit_2" in r
    }
    assert not (tmp_path / "without" / "best").exists()
    record = read_records(tmp_path / "with" / "metrics.jsonl")[-1]
    assert record["eval_seconds"] > 0 and "eval_seconds" in CLOCK
    assert with_evals.metrics == without_clock(record)


@pytest.mark.parametrize("resumed_at", [4, 8])
def test_a_resumed_run_has_the_same_records_and_the_same_best_checkpoint(toy, tmp_path, resumed_at):
    for name in ("whole", "killed"):
        train(toy, tmp_path / name, keep=5)
    for path in (tmp_path / "killed" / "checkpoints").iterdir():
        if int(path.name) > resumed_at:
            (path / "manifest.json").unlink()
    with pytest.warns(RuntimeWarning, match="is skipped: it has no manifest.json"):
        train(toy, tmp_path / "killed", keep=5)
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
    newest = [params_of(toy, tmp_path / name, "newest") for name in ("whole", "killed")]
    best = [params_of(toy, tmp_path / name, "best") for name in ("whole", "killed")]
    for one, other in (newest, best):
        assert one.step == other.step and bits(one.params) == bits(other.params)


class Stopping(np.ndarray):
    """Rows whose n-th read sends SIGTERM."""

    reads, at = 0, 0

    def __getitem__(self, rows):
        Stopping.reads += 1
        if Stopping.reads == Stopping.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return np.asarray(self)[rows]


@pytest.mark.parametrize("step, at", [(6, 8), (12, 20)])  # six batches in each evaluation
def test_a_run_stopped_within_an_evaluation_repeats_it(toy, tmp_path, monkeypatch, step, at):
    points = {**toy.points(), "inputs": toy.points()["inputs"].view(Stopping)}
    experiment = with_accuracy(toy)
    calibration = experiment.calibration._replace(examples=lambda: points)
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    monkeypatch.setattr(Stopping, "reads", 0)
    monkeypatch.setattr(Stopping, "at", at)
    fitted = train(toy, cut, experiment._replace(calibration=calibration))
    assert (fitted.step, fitted.stopped, Stopping.reads) == (step, True, at)
    assert params_of(toy, cut, "newest").step == step
    last = history(cut)[-1]
    assert last["step"] == step and "loss" in last
    assert not any(name.startswith(EVAL) for name in last)
    monkeypatch.setattr(Stopping, "at", at + 3)  # stopped within the same evaluation once more
    again = train(toy, cut, experiment._replace(calibration=calibration))
    assert (again.step, again.stopped, Stopping.reads) == (step, True, at + 3)
    assert history(cut)[-1] == last
    resumed, straight = train(toy, cut), train(toy, whole)
    assert not resumed.stopped and resumed.metrics == straight.metrics
    assert history(cut) == history(whole)
    for kind in ("newest", "best"):
        one, other = (params_of(toy, folder, kind) for folder in (cut, whole))
        assert one.step == other.step and bits(one.params) == bits(other.params)


def test_a_run_killed_before_its_best_checkpoint_was_complete(toy, tmp_path):
    for name in ("whole", "killed"):
        train(toy, tmp_path / name)
    for path in (tmp_path / "killed").glob("*/000000*"):
        if int(path.name) > 8:
            (path / "manifest.json").unlink()
    assert best_score(tmp_path / "killed") == -math.inf
    with pytest.warns(RuntimeWarning, match="is skipped"):
        train(toy, tmp_path / "killed")
    assert best_score(tmp_path / "killed") == best_score(tmp_path / "whole")
    best = [params_of(toy, tmp_path / name, "best") for name in ("whole", "killed")]
    assert best[0].step == best[1].step and bits(best[0].params) == bits(best[1].params)


def test_the_best_checkpoint_is_kept_beside_the_newest(toy, tmp_path, monkeypatch):
    scores_in_turn(monkeypatch, 0.2, math.nan, 0.9, 0.9)
    train(toy, tmp_path, keep=1)
    steps = lambda kind: [int(path.name) for path in (tmp_path / kind).iterdir()]
    assert steps("checkpoints") == [12] and steps("best") == [9]
    assert best_score(tmp_path) == 0.9
    manifest = json.loads((tmp_path / "best" / "00000009" / "manifest.json").read_text())
    assert manifest["score"] == 0.9 and all(n.startswith("params/") for n in manifest["leaves"])
    scores_in_turn(monkeypatch, 0.3, 0.95)
    train(toy, tmp_path, steps=18, keep=1)
    assert steps("checkpoints") == [18] and steps("best") == [18]


def test_a_checkpoint_is_chosen_by_kind_or_step(toy, tmp_path, monkeypatch):
    scores_in_turn(monkeypatch, 0.2, 0.4, 0.9, 0.1)
    fitted = train(toy, tmp_path, checkpoint_every=9, keep=2)
    newest, best = (params_of(toy, tmp_path, kind) for kind in ("newest", "best"))
    assert (newest.step, best.step) == (12, 9)
    assert bits(newest.params) == bits(fitted.params) != bits(best.params)
    assert bits(params_of(toy, tmp_path, 9).params) == bits(best.params)
    (tmp_path / "checkpoints" / "00000009" / "manifest.json").unlink()
    with pytest.warns(RuntimeWarning, match="is skipped"):  # the best checkpoint has step 9 too
        assert bits(params_of(toy, tmp_path, 9).params) == bits(best.params)
    with pytest.raises(FileNotFoundError, match=r"`checkpoint` 6 .* steps 9, 12; best 9"):
        params_of(toy, tmp_path, 6)
    for wrong in ("latest", True, None):
        with pytest.raises(ValueError, match="`checkpoint`"):
            params_of(toy, tmp_path, wrong)


def test_a_damaged_best_checkpoint_is_an_error(toy, tmp_path):
    train(toy, tmp_path)
    (path,) = (tmp_path / "best").iterdir()
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"score": 0', '"score": 1'))
    template = {"params": jax.eval_shape(toy.init, jax.random.key(0))}
    with (
        pytest.warns(RuntimeWarning, match=r"manifest\.json differs from what was written"),
        pytest.raises(CheckpointError, match=r"\(best\)"),
    ):
        restore(tmp_path, template, "best")
    assert restore(tmp_path, template) is not None


def test_the_score_is_the_mean_accuracy_or_else_a_loss(toy, tmp_path):
    assert evals.score({"eval_accuracy": 0.5, "eval_loss": 2.0, "eval_objective": 1.0}) == 0.5
    assert evals.score({"eval_loss": 2.0, "eval_objective": 1.0}) == -2.0
    assert evals.score({"eval_objective": 1.0}) == -1.0
    assert evals.score({"eval_norm": 1.0}) is None
    train(toy, tmp_path, toy.build())  # a method without `predict`
    record = history(tmp_path)[-1]
    assert "eval_accuracy" not in record and evals.in_short(record).startswith("calibration loss ")
    assert best_score(tmp_path) == max(
        -r["eval_loss"] for r in history(tmp_path) if EVAL + "loss" in r
    )


def test_functions_of_the_user(toy, tmp_path):
    norm = lambda params: {"norm": jnp.sum(params["head"]["kernel"] ** 2), "one": 1}
    fitted = train(toy, tmp_path / "a", evals=[("head", norm)])
    assert fitted.metrics["eval_head_norm"] == pytest.approx(
        float(jnp.sum(fitted.params["head"]["kernel"] ** 2))
    )
    assert [r["eval_head_one"] for r in history(tmp_path / "a")[1:]] == [1.0] * 4
    clash = [("accuracy", lambda params: {"exit_0": 0.0})]
    with pytest.raises(ValueError, match=r"`evals`.*eval_accuracy_exit_0"):
        train(toy, tmp_path / "b", evals=clash)
    with pytest.raises(ValueError, match=r"`evals`.*`eval_every`"):
        train(toy, tmp_path / "c", every=0, evals=[("head", norm)])


def test_labels_of_the_calibration_split_are_checked(toy, tmp_path):
    shifted = lambda: {**toy.points(), "labels": toy.points()["labels"] + 1}
    experiment = with_accuracy(toy)
    experiment = experiment._replace(calibration=experiment.calibration._replace(examples=shifted))
    with pytest.raises(ValueError, match=r"`experiment\.calibration`"):
        train(toy, tmp_path, experiment)


def test_sharded_parameters_are_evaluated_and_saved(toy, tmp_path):
    rules = [(r"blocks/kernel$", P(None, "data"))]
    sharded = train(toy, tmp_path / "sharded", rules=rules, mesh=make_mesh())
    replicated = train(toy, tmp_path / "replicated")
    for name in ("newest", "best"):
        saved = params_of(toy, tmp_path / "sharded", name)
        assert saved.step > 0
    assert not sharded.params["blocks"]["kernel"].is_fully_replicated
    assert sharded.metrics.keys() == replicated.metrics.keys()
    for name, value in replicated.metrics.items():
        assert sharded.metrics[name] == pytest.approx(value, abs=1e-4), name


def test_the_progress_bar_shows_the_last_exit(toy, tmp_path, capsys):
    settings = dataclasses.replace(toy.SETTINGS, eval_every=3)
    fitted = fit(with_accuracy(toy), settings, tmp_path, 3)
    shown = f"calibration accuracy {fitted.metrics['eval_accuracy_exit_2']:.4f}"
    assert shown in capsys.readouterr().err


def test_names_that_begin_with_eval_are_refused(toy, tmp_path):
    experiment = toy.build()
    objective = lambda o, y, p: (toy.objective(o, y, p)[0], {"eval_loss": p})
    method = experiment.method._replace(objective=objective)
    with pytest.raises(ValueError, match=r"`method`.*eval_loss"):
        train(toy, tmp_path, experiment._replace(method=method))


def test_batches_cover_the_split_once(toy):
    rows = evals.spread(48, None)
    batches = list(evals._batches(toy.points(), rows, 20, 0, 20))
    counts = np.concatenate([counts for _, counts in batches])
    inputs = np.concatenate([batch["inputs"] for batch, _ in batches])
    assert [len(batch["labels"]) for batch, _ in batches] == [20, 20, 20] and counts.sum() == 48
    np.testing.assert_array_equal(inputs[counts], toy.points()["inputs"])
    put_batch(batches[0][0], make_mesh())
    for (batch, _), (own, _) in zip(
        batches, evals._batches(toy.points(), rows, 20, 5, 10), strict=True
    ):
        np.testing.assert_array_equal(own["inputs"], batch["inputs"][5:10])
