"""Profiles of a few updates, FLOPs of an update, readings of the devices."""

import dataclasses
import gzip
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training.toy_experiment import SETTINGS, build

from dynexit.core.cost import cost_of
from dynexit.training.logs import CLOCK, read_records, without_clock
from dynexit.training.loop import NonFiniteLoss, fit
from dynexit.training.monitoring import throughput
from dynexit.training.monitoring.product_flops import product_flops
from dynexit.training.monitoring.profile import Profiler
from dynexit.training.monitoring.throughput import Throughput, peak_flops, update_flops

shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)


@pytest.mark.parametrize(
    "f, arguments, wanted",
    [
        (jnp.matmul, (shape(5, 8, 16), shape(5, 16, 4)), 2 * 5 * 8 * 16 * 4),
        (lambda x: jnp.tanh(x).sum(), (shape(8),), 0),
        (
            lambda w, x: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0],
            (shape(6, 4, 4), shape(3, 4)),
            6 * 2 * 3 * 4 * 4,
        ),
        (
            lambda x: jax.lax.while_loop(lambda x: x.sum() < 0, lambda x: x @ x, x),
            (shape(4, 4),),
            2 * 4**3,
        ),
        (
            lambda x: jax.lax.cond(x.sum() < 0, lambda x: x @ x, lambda x: x, x),
            (shape(4, 4),),
            2 * 4**3,
        ),
        (jax.jit(jax.checkpoint(lambda x: x @ x)), (shape(4, 4),), 2 * 4**3),
        (
            lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "VALID", feature_group_count=2),
            (shape(2, 4, 8, 8), shape(6, 2, 3, 3)),
            2 * (2 * 6 * 6 * 6) * (2 * 3 * 3),
        ),
    ],
)
def test_flops_of_products(f, arguments, wanted):
    assert product_flops(f, *arguments) == wanted


def test_flops_of_a_gradient_are_those_of_xla():
    def loss(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    arguments = shape(5, 64, 64), shape(32, 64)
    counted = product_flops(jax.grad(loss), *arguments)
    # XLA adds the elementwise operations
    assert counted == pytest.approx(cost_of(jax.grad(loss), *arguments).flops, rel=0.05)


def test_flops_of_an_update_leave_out_what_is_computed_again():
    plain = update_flops(build(), dataclasses.replace(SETTINGS, remat=False))
    assert plain == update_flops(build(), dataclasses.replace(SETTINGS, remat=True)) > 0
    twice = update_flops(build(), dataclasses.replace(SETTINGS, batch_size=16))
    assert twice == 2 * plain


def test_every_device_that_is_listed_is_found():
    for kind, peak in throughput.PEAKS:
        assert peak_flops(kind) == peak
    assert peak_flops("TPU v5p") == 459e12 and peak_flops("NVIDIA A100-SXM4-40GB") == 312e12
    assert peak_flops("cpu") is None


def test_readings_of_a_known_device(monkeypatch):
    device = types.SimpleNamespace(
        device_kind="TPU v4", memory_stats=lambda: {"peak_bytes_in_use": 5}
    )
    larger = types.SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 7})
    readings = Throughput(build(), SETTINGS, devices=2)
    flops = update_flops(build(), SETTINGS)
    monkeypatch.setattr(throughput.jax, "devices", lambda: [device, larger])
    monkeypatch.setattr(throughput.jax, "local_devices", lambda: [device, larger])
    found = readings.read(8e9)  # 1e9 updates a second
    assert found["flops_per_second"] == pytest.approx(1e9 * flops, rel=1e-3)
    utilisation = 1e9 * flops / (2 * 275e12)
    assert found["model_flops_utilisation"] == pytest.approx(utilisation, rel=1e-3)
    assert found["memory_peak_bytes"] == 7


def test_records_have_readings_of_the_clock_alone(tmp_path):
    fit(build(), SETTINGS, tmp_path, seed=0, progress=False)
    for record in read_records(tmp_path / "metrics.jsonl"):
        assert record["flops_per_second"] > 0
        assert "model_flops_utilisation" not in record and "memory_peak_bytes" not in record
        assert not set(without_clock(record)) & set(CLOCK)


def test_a_profile_changes_no_bit_and_names_the_parts(tmp_path, capsys):
    plain = fit(build(), SETTINGS, tmp_path / "plain", seed=0, progress=False)
    profiled = fit(build(), SETTINGS, tmp_path / "run", seed=0, progress=False, profile=3)
    for a, b in zip(*map(jax.tree.leaves, (plain.params, profiled.params)), strict=True):
        np.testing.assert_array_equal(a, b)
    folder = tmp_path / "run" / "profile"
    line = capsys.readouterr().err
    assert f"profile of updates 3 to 5: {folder}" in line
    (trace,) = folder.glob("**/perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    updates = {e["args"]["step_num"] for e in events if e.get("name") == "update"}
    assert {int(n) for n in updates} == {3, 4, 5}
    assert not (tmp_path / "plain" / "profile").exists()


@pytest.mark.parametrize(
    "count, first, steps, traced",
    [
        (5, 0, 100, (2, 7)),
        (5, 10, 100, (12, 17)),
        (5, 0, 4, (2, 4)),
        (5, 9, 10, (9, 10)),
        (0, 0, 9, None),
    ],
)
def test_updates_that_are_traced(tmp_path, monkeypatch, count, first, steps, traced):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    with Profiler(tmp_path, count, first, steps, lambda line: None) as profiler:
        for done in range(first, steps):
            with profiler.update(done):
                calls.append(done)
            profiler.after(done + 1, jnp.zeros(()))
    if traced is None:
        assert calls == list(range(first, steps))
    else:
        begin, end = calls.index("start"), calls.index("stop")
        assert (calls[begin + 1], calls[end - 1] + 1) == traced


def test_a_run_that_ends_early_ends_its_trace(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    with pytest.raises(KeyError), Profiler(tmp_path, 5, 0, 100, lambda line: None) as profiler:
        with profiler.update(2):
            raise KeyError
    assert calls == ["start", "stop"]


def test_a_second_profile_is_a_warning(tmp_path):
    with jax.profiler.trace(tmp_path / "first"):
        with Profiler(tmp_path, 1, 0, 9, lambda line: None) as profiler:
            with pytest.warns(RuntimeWarning, match="no profile is written"):
                profiler.update(2)
            profiler.after(3, jnp.zeros(()))


def test_scopes_name_the_parts_of_an_update():
    from dynexit.training.parallel.mesh import make_mesh
    from dynexit.training.state import create_state
    from dynexit.training.step import make_train_step

    mesh = make_mesh()
    state = create_state(build(), SETTINGS, 0, mesh)
    batch = build().train.batch(0, 0, SETTINGS.batch_size)
    lowered = make_train_step(build(), SETTINGS, mesh).lower(state, batch)
    text = lowered.as_text(debug_info=True)
    for scope in ("embed", "block", "exit", "objective", "optimizer"):
        assert f"/{scope}" in text or f"({scope})" in text, scope


def test_a_failed_update_is_recorded_and_forgotten_by_the_next_start(tmp_path):
    broken = build()
    objective = broken.method.objective

    def failing(outputs, labels, progress):
        losses, metrics = objective(outputs, labels, progress)
        return jnp.where(progress > 0.5, jnp.nan, losses), metrics

    broken = broken._replace(method=broken.method._replace(objective=failing))
    with pytest.raises(NonFiniteLoss):
        fit(broken, SETTINGS, tmp_path, seed=0, progress=False)
    last = read_records(tmp_path / "metrics.jsonl")[-1]
    assert last["step"] == 8 and last["loss"] is None
    with pytest.raises(NonFiniteLoss):
        fit(broken, SETTINGS, tmp_path, seed=0, progress=False)
    assert sum(r["loss"] is None for r in read_records(tmp_path / "metrics.jsonl")) == 1
