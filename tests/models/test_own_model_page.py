"""docs/tutorials/own_model.md is true: its examples run, and its experiments are short and train."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.cli.main import main
from dynexit.runs.experiment_file import load
from dynexit.training.loop import fit

PAGE = (Path(__file__).parents[2] / "docs" / "tutorials" / "own_model.md").read_text()
FENCES = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
EXPERIMENTS = dict(
    re.findall(r"^### (\w+)\n\n```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
)


def test_there_is_an_experiment_for_every_kind():
    assert list(EXPERIMENTS) == ["Functions", "Linen", "NNX", "equinox"]


@pytest.mark.parametrize("source", [f for f in FENCES if f not in EXPERIMENTS.values()])
def test_other_examples_run(source):
    exec(compile(source, "own_model.md", "exec"), {})


@pytest.mark.parametrize("source", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_an_experiment_takes_15_lines_beside_its_module(source):
    lines = [line for line in source.splitlines() if line.strip()]
    module = re.search(r"^(?:class Block\(.*\n(?:    .*\n)+|dense = .*\nflat = .*\n)", source, re.M)
    assert module and len(lines) - len(module[0].splitlines()) <= 15


@pytest.mark.parametrize("kind", EXPERIMENTS)
def test_an_experiment_trains_and_runs(kind, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(EXPERIMENTS[kind])
    file = load(path)
    experiment = file.build(file.smoke)
    fitted = fit(experiment, file.smoke.training, tmp_path / "run", seed=0, progress=False)
    assert fitted.step == 2 and np.isfinite(fitted.metrics["loss"])
    before = jax.jit(experiment.model.init)(jax.random.key(0))
    assert jax.tree.structure(before) == jax.tree.structure(fitted.params)
    images = experiment.prepare(jnp.asarray(experiment.test.examples()["inputs"][:6]))
    model, params = experiment.model, fitted.params
    step, state = model.steps(params), model.embed(params, images)
    dx.check_row_independence(step, state)
    outputs = dx.run_all(step, state, model.depth)
    sure = jax.nn.softmax(outputs[0]).max(-1)
    rule = dx.criteria.max_probability_above(jnp.median(sure))
    halted = dx.run_until(step, state, model.depth, rule)
    assert len(set(halted.exit.tolist())) > 1
    np.testing.assert_allclose(
        halted.output, outputs[halted.exit, jnp.arange(6)], rtol=1e-4, atol=1e-5
    )


def test_the_command_trains_one(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(EXPERIMENTS["Linen"])
    run = tmp_path / "run"
    words = ["--smoke", "--run", str(run), "--model.depth", "2", "--evaluation.repeats", "1"]
    quick = ["--evaluation.timed-rows", "128", "--evaluation.tune", "False"]
    assert main(["train", str(path), *words, *quick]) == 0
    assert json.loads((run / "report.json").read_text())["training"]["step"] == 2
