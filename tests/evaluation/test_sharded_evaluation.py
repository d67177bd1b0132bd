"""Evaluation on several devices gives the figures of one device, bit for bit."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import dynexit as dx
from dynexit.calibration.rules.accept_loss import accept_loss
from dynexit.core.settings import Evaluation
from dynexit.engine.collectives import collectives, compile_sharded
from dynexit.evaluation import latency
from dynexit.evaluation.calibrate import calibrate
from dynexit.evaluation.devices import Devices, devices_for, kept_on
from dynexit.evaluation.measure import evaluate
from dynexit.evaluation.recording import record
from dynexit.evaluation.reports import plots
from dynexit.evaluation.reports.reporting import report, summary
from dynexit.training.parallel.placement import shardings
from dynexit.training.parallel.rules import TENSOR_PARALLEL

HERE = Path(__file__).parent


def mesh(*shape, kind=AxisType.Auto):
    return jax.make_mesh(shape, ("data", "fsdp", "model"), (kind,) * 3)


@pytest.mark.parametrize(
    "shape, kind", [((2, 2, 1), AxisType.Auto), ((1, 2, 2), AxisType.Explicit)]
)
def test_every_figure_that_is_no_time_is_that_of_one_device(experiment, shape, kind):
    differing = runpy.run_path(str(HERE / "sharded_evaluation.py"))["differing"]
    assert differing(experiment, mesh(*shape, kind=kind)) == []


def test_eight_devices_give_the_figures_of_one():
    flags = os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=8")
    environment = {**os.environ, "XLA_FLAGS": flags}
    command = [sys.executable, str(HERE / "sharded_evaluation.py"), "4", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == []


def test_parameters_stay_split_where_a_device_cannot_hold_them(experiment, params, operating_point):
    """Blocks of one width split over "model": sums within the loop, and the same exits."""
    devices = Devices(mesh(2, 1, 2), ("model",))
    over = {"w": P(None, "fsdp", "model"), "out": P(None, "model", None)}
    split = lambda path, a: NamedSharding(devices.mesh, over.get(path[-1].key, P()))
    even = lambda a: all(n % 2 == 0 for n in a.shape[1:])
    placed = jax.tree_util.tree_map_with_path(
        lambda path, a: jax.device_put(a, split(path, a)) if even(a) else a, params
    )
    placed = devices.place(placed)
    specs = {tuple(a.sharding.spec) for a in jax.tree.leaves(placed)}
    assert (None, None, "model") in specs and devices.count == 2

    criterion = experiment.method.criterion(operating_point)
    alone = record(experiment, params, experiment.test, 4, criterion)
    found = record(experiment, placed, experiment.test, 4, devices.place(criterion), devices)
    np.testing.assert_array_equal(found.predictions, alone.predictions)

    def dynamic(shared, inputs):
        ran = latency.dynamic_depth(experiment.model, experiment.method, *shared, inputs)
        return ran._replace(rows_executed=ran.rows_executed[None])

    inputs = np.asarray(experiment.prepare(experiment.test.examples()["inputs"][:8]))
    run = devices.compile(dynamic)
    ran = run((placed, devices.place(operating_point)), inputs)
    want = dynamic((params, operating_point), inputs)
    np.testing.assert_array_equal(ran.exit_depth, want.exit_depth)


SPLIT = {
    "Vit": (dx.models.Vit(patch=4, stride=4, width=32, depth=3, heads=4), (8, 8, 1)),
    "Resnet": (dx.models.Resnet(channels=(16,), blocks=(3,)), (4, 4, 1)),
    "DeepThinking": (dx.models.DeepThinking(width=16, steps=3, blocks=1), (6, 2)),
    "Equilibrium": (dx.models.Equilibrium(patch=2, width=8, steps=3), (4, 4, 1)),
    "NeuralOde": (dx.models.NeuralOde(width=8, hidden=8, steps=3), (6,)),
    "Gru": (dx.models.Gru(width=8, steps=4), (6,)),
    "Rnn": (dx.models.Rnn(width=8, depth=3, cell="gru"), dx.Tokens(5, 6)),
}
GATHERED = ("Gru", "Rnn")  # the hidden state, at every step


@pytest.mark.parametrize("name", SPLIT)
def test_models_split_by_the_ready_rules_end_alone_along_the_rows(name):
    """The collectives in the loop join devices that exit together; all but recurrent cells need
    sums alone.
    """
    devices, (settings, shape) = Devices(mesh(2, 1, 2), ("model",)), SPLIT[name]
    model, rng = settings.build(shape, 10), np.random.default_rng(0)
    params = model.init(jax.random.key(0))
    if isinstance(shape, dx.Tokens):
        x = rng.integers(shape.vocabulary, size=(16, shape.length)).astype(np.int32)
    else:
        x = rng.normal(size=(16, *shape)).astype(np.float32)
    outputs = dx.run_all(model.steps(params), model.embed(params, x), model.depth)
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs
    certain = jax.nn.softmax(logits).max(-1)
    certain = certain.reshape(*certain.shape[:2], -1).min(-1)
    rule = dx.criteria.max_probability_above(float(np.median(certain[0])))

    def run(params, x):
        return dx.run_until(
            model.steps(params), model.embed(params, x), model.depth, rule
        ).exit_depth

    ready = shardings(params, devices.mesh, TENSOR_PARALLEL)
    placed = devices.place(jax.device_put(params, ready))
    spread = jax.shard_map(
        run,
        mesh=devices.mesh,
        in_specs=(P(), P(devices.rows)),
        out_specs=P(devices.rows),
        axis_names=set(devices.rows),
        check_vma=False,  # as in `Devices.compile`
    )
    program = compile_sharded(spread, placed, devices.batch(x))
    inside = [c for c in collectives(program.as_text()) if c.apart]
    kinds = {"all-reduce", *(["all-gather"] if name in GATHERED else [])}
    assert {(c.kind, c.groups) for c in inside} == {(kind, ((0, 1), (2, 3))) for kind in kinds}
    exits = program(placed, devices.batch(x))
    np.testing.assert_array_equal(exits, run(params, x))
    assert len(set(exits.tolist())) > 1


def test_rows_are_split_over_every_axis_where_parameters_fit(params):
    assert devices_for(params, mesh(1, 2, 2)).count == 4
    assert devices_for(params, None).count == devices_for(params, mesh(1, 1, 1)).count == 1


@pytest.mark.parametrize(
    "shape, room, split",
    [
        ((1, 2, 2), 1.0, ()),
        ((1, 2, 2), 0.6, ("fsdp",)),
        ((1, 2, 2), 0.3, ("fsdp", "model")),
        ((1, 2, 2), 0.0, ("fsdp", "model")),
        ((2, 2, 1), 0.0, ("fsdp",)),
        ((4, 1, 1), 0.0, ()),
    ],
)
def test_a_device_that_is_full_keeps_parameters_split(shape, room, split, monkeypatch):
    """Along as few devices as it takes; axes that split nothing stay axes of rows."""
    where, params = mesh(*shape), {"w": np.zeros((8, 4), np.float32)}
    placed = jax.device_put(params, NamedSharding(where, P("fsdp", "model")))
    limit = int(room * 2 * 8 * 4 * 4)  # parameters may take half of it
    monkeypatch.setattr("dynexit.evaluation.devices.memory_of", lambda device: limit)
    devices = devices_for(placed, where)
    assert devices.split == split
    (kept,) = {a.sharding.spec for a in jax.tree.leaves(devices.place(placed))}
    assert tuple(filter(None, kept)) == split
    assert devices_for(params, where).split == ()


def test_nothing_is_timed_where_no_device_holds_the_parameters(alike, monkeypatch, tmp_path):
    """One line says so; everything else is reported."""
    monkeypatch.setattr("dynexit.evaluation.devices.memory_of", lambda device: 1)
    where, lines = mesh(2, 2, 1), []
    params = jax.jit(alike.model.init)(jax.random.key(0))
    over = lambda a: P(*[None] * (a.ndim - 2), "fsdp" if a.shape[-2] % 2 == 0 else None, None)
    placed = jax.tree.map(lambda a: jax.device_put(a, NamedSharding(where, over(a))), params)
    found = calibrate(alike, placed, accept_loss(0.1), 4, mesh=where)
    point = {"threshold": jnp.array([0.5, 0.6, 0.55, 0.7])}
    found = found._replace(choice=found.choice._replace(operating_point=point))
    settings = Evaluation(4, repeats=1)
    evaluated = evaluate(alike, placed, found, settings, lines.append, where)
    assert len([line for line in lines if line.startswith("nothing is timed")]) == 1
    assert not any("tun" in line for line in lines)
    assert evaluated.timings is None and evaluated.timed is None and evaluated.agreement == 1.0
    alone = record(alike, params, alike.test, 4, alike.method.criterion(point))
    np.testing.assert_array_equal(evaluated.records.predictions, alone.predictions)

    content = report(evaluated, point, {"name": "tiny", "classes": [], "batch_size": 4})
    assert json.loads(json.dumps(content))["seconds_full"] is None
    assert 0 < content["occupancy"] <= 1 and 0 < content["flops_ratio_blocks"] < 1
    assert ("seconds for the split", "not timed", "not timed") in summary(content)
    for draw in (plots.accuracy_against_compute, plots.depth_histogram):
        assert draw(content, tmp_path / "drawn.png").stat().st_size > 0
    assert plots.compare_runs([content], ["a"], tmp_path / "runs.png").exists()


def test_padding_rows_of_the_last_batches_are_masked():
    four = Devices(mesh(2, 2, 1))
    assert kept_on(four, 16, 4).tolist() == [4, 4, 4, 4]
    assert kept_on(four, 7, 4).tolist() == [4, 3, 0, 0]


def test_no_collective_is_in_the_loop_where_parameters_are_whole(experiment, params):
    devices = Devices(mesh(2, 2, 1))
    step, model = experiment.model.steps, experiment.model

    def run(params, x):
        rule = dx.criteria.max_probability_above(0.6)
        return dx.run_until(step(params), model.embed(params, x), model.depth, rule).output

    spread = jax.shard_map(
        run, mesh=devices.mesh, in_specs=(P(), P(devices.rows)), out_specs=P(devices.rows)
    )
    x = np.zeros((8, 2), np.float32)
    program = compile_sharded(spread, devices.place(params), devices.batch(x))
    assert collectives(program.as_text()) == ()
