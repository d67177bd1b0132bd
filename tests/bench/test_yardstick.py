"""The benchmark: sampled depths, independent rows, consistent records, peers with equal outputs."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.bench import device_suite, masked_peer, yardstick, yardstick_programs
from dynexit.bench.device_suite import Unit
from dynexit.bench.masked_peer import vmapped
from dynexit.bench.problems import CLASSES, DISTRIBUTIONS, VOCABULARY, Cell, draw, problem
from dynexit.bench.torch_peer import regrouping
from dynexit.bench.yardstick import run_cell
from dynexit.cli import bench
from dynexit.cli.main import main
from dynexit.evaluation import latency
from dynexit.evaluation.reports import plots


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("mean", [0.25, 0.5, 0.75])
def test_sampled_depths_have_the_target_mean(distribution, mean):
    depths = draw(distribution, mean, 12, 20_000)
    assert depths.min() >= 1 and depths.max() <= 12 and depths.dtype == np.int32
    np.testing.assert_allclose(depths.mean() / 12, mean, atol=0.02)
    distinct = {"together": 1, "bimodal": 2}.get(distribution, 5)
    assert len(set(depths.tolist())) >= distinct
    np.testing.assert_array_equal(draw(distribution, 1.0, 12, 7), 12)


@pytest.mark.parametrize(
    "block",
    [pytest.param(b, marks=pytest.mark.slow) for b in ("transformer", "language")]
    + ["tied", "mixer", "conv"],
)
def test_blocks_are_finite_and_rows_independent(block):
    step, params, state = problem(Cell(block, 64, 4, 3, 3, "float32"))
    dx.check_row_independence(step(params), state)
    outputs = dx.run_all(step(params), state, 3)
    shape = (3, 3, CLASSES)
    if block == "language":
        outputs, shape = outputs["logits"], (3, 3, 4, VOCABULARY)
    assert outputs.shape == shape and bool(jnp.isfinite(outputs).all())
    assert float(jnp.abs(outputs[0] - outputs[2]).max()) > 1e-3, "blocks must change their input"


def test_records_are_consistent():
    lines = []
    cell = Cell("mixer", 64, 4, 3, 4, "float32")
    records = run_cell(cell, [("bimodal", 0.5)], repeats=1, peers={}, log=lines.append)
    by_name = {r["program"]: r for r in records}
    assert {"full", "compacted", "tuned", "masked", "per_row"} <= set(by_name)
    assert "tiles of" in lines[1]
    best = min(r["seconds"] for name, r in by_name.items() if name.startswith("full"))
    for r in records:
        np.testing.assert_allclose(r["speedup"], best / r["seconds"])
        if "efficiency" in r:
            np.testing.assert_allclose(r["efficiency"], r["speedup"] * r["mean"])
        assert r["low"] <= r["seconds"] <= r["high"]
        assert r["compile_seconds"] > 0 and r["program_bytes"] > 1000
        assert "tuned_over_best" not in r
        assert (r["kind"] == "full") == r["program"].startswith("full")
    depths = draw("bimodal", 0.5, 3, 4)
    np.testing.assert_allclose(by_name["masked"]["occupancy"], depths.sum() / (4 * depths.max()))
    assert by_name["per_row"]["occupancy"] == 1.0


@pytest.mark.parametrize("block", ["transformer", "tied"])
def test_the_pytorch_peer_has_equal_outputs(block):
    pytest.importorskip("torch")
    cell = Cell(block, 64, 4, 3, 5, "float32")
    step, params, state = made = problem(cell)
    depths = np.array([1, 3, 2, 1, 3], np.int32)
    found = dx.run_until(step(params), state, 3, dx.criteria.at_depth(jnp.asarray(depths))).output
    np.testing.assert_allclose(regrouping(cell, made, depths)(), found, atol=1e-4)
    with pytest.raises(ValueError, match="`cell`"):
        regrouping(cell._replace(block="mixer"), made, depths)


@pytest.mark.parametrize("block", ["transformer", "tied", "mixer", "conv"])
def test_the_masked_peer_has_equal_outputs_and_gathers_weights(block):
    cell = Cell(block, 64, 4, 3, 5, "float32")
    made = problem(cell)
    depths = np.array([1, 3, 2, 1, 3], np.int32)
    outputs = dx.run_all(made.step(made.params), made.state, 3)
    np.testing.assert_allclose(
        vmapped(cell, made, depths)(), outputs[depths - 1, np.arange(5)], atol=1e-4
    )
    text = masked_peer._run.lower(made.params, made.state, jnp.asarray(depths), made.step).as_text()
    heads_per_row = f"tensor<5x64x{CLASSES}xf32>"
    assert (
        (heads_per_row in text) == (block != "tied") == (masked_peer.gathered_bytes(cell, made) > 0)
    )


def test_the_weights_gathered_by_the_masked_peer_are_counted_and_limited(monkeypatch):
    cell = Cell("transformer", 64, 4, 3, 5, "float32")
    made, depths = problem(cell), np.ones(5, np.int32)
    one_block = 64 * (12 * 64 + CLASSES)
    assert masked_peer.gathered_bytes(cell, made) == 5 * one_block * 4
    narrow = cell._replace(dtype="bfloat16")
    assert masked_peer.gathered_bytes(narrow, problem(narrow)) == 5 * one_block * 6
    monkeypatch.setattr(masked_peer, "MOST_BYTES", 5 * one_block * 4)
    vmapped(cell, made, depths)
    monkeypatch.setattr(masked_peer, "MOST_BYTES", 5 * one_block * 4 - 1)
    with pytest.raises(masked_peer.TooLarge, match="batch 5, blocks of width 64"):
        vmapped(cell, made, depths)


def test_a_batch_of_one_is_compared_with_unrolled_blocks(monkeypatch):
    tunings, tune = [], yardstick.tune

    def recorded(*arguments, exits=None, costs=None):
        tunings.append((exits, costs))
        return tune(*arguments, exits=exits, costs=costs)

    monkeypatch.setattr(yardstick, "tune", recorded)
    monkeypatch.setattr(masked_peer, "MOST_BYTES", 0)
    cell, lines = Cell("mixer", 64, 4, 2, 1, "float32"), []
    loads = [("together", 0.5), ("together", 1.0)]
    records = run_cell(cell, loads, 1, {"masked": vmapped}, lines.append)
    unrolled = [r for r in records if r["program"] == "unrolled"]
    assert [round(r["mean"] * 2) for r in unrolled] == [1, 2]
    assert unrolled[0]["program_bytes"] < unrolled[1]["program_bytes"]
    assert not any(r["kind"] == "peer" for r in records)
    assert sum("peer masked skipped" in line for line in lines) == 2
    exits = [None if e is None else e.tolist() for e, _ in tunings]
    assert exits == [None, [0], [1]], "every load is tuned for its own exits"
    assert tunings[0][1] is None and tunings[1][1] == tunings[2][1] is not None, "measured once"


def test_unrolled_blocks_return_the_output_at_their_depth():
    made = problem(Cell("mixer", 64, 4, 3, 1, "float32"))
    program, arguments = yardstick_programs.unrolled(made, 2)
    np.testing.assert_allclose(
        program.call(*arguments), dx.run_all(made.step(made.params), made.state, 3)[1], atol=1e-5
    )
    assert len(arguments[0]) == 2


def test_the_program_does_not_grow_with_depth():
    def text(depth):
        cell = Cell("mixer", 64, 4, depth, 4, "float32")
        made = problem(cell)
        program = yardstick_programs.dynamic_program(cell, made.step, ("compacted", None))
        return len(program.lower(made.params, made.state, jnp.ones(4, jnp.int32)).as_text())

    assert text(8) < 1.05 * text(2)


def test_programs_depend_on_the_batch():
    assert list(yardstick_programs.trials(12)) == [
        "tile 1",
        "tile 2",
        "tile 4",
        "tile 8",
        "single tile 4",
        "single tile 8",
    ]
    assert list(yardstick_programs.trials(1)) == ["tile 1"]
    assert set(yardstick_programs.executors(64, False)) == {"compacted", "masked"}
    assert set(yardstick_programs.executors(64, True)) == {"compacted", "masked", "per_row"}


def test_the_command_writes_records_and_a_figure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(yardstick_programs, "SLOTS", (1, 2))
    plotted, plot = [], plots.efficiency_by_depth
    recorded = lambda records, path: plotted.extend(records) or plot(records, path)
    monkeypatch.setattr(plots, "efficiency_by_depth", recorded)
    out = tmp_path / "bench.json"
    words = "bench --block tied --width 64 --tokens 4 --depth 2 --batch 2 --mean 0.75 --repeats 1 "
    words += "--peer masked --exhaustive --out"
    assert main([*words.split(), str(out)]) == 0
    content = json.loads(out.read_text())
    assert content["versions"]["jax"] == jax.__version__
    assert content["options"]["exhaustive"] is True
    by_name = {r["program"]: r for r in content["records"]}
    of_kind = lambda kind: [name for name, r in by_name.items() if r["kind"] == kind]
    assert of_kind("full") == ["full", "full tiled 1"] and of_kind("trial") == ["tile 1", "tile 2"]
    assert of_kind("executor") == ["compacted", "masked", "per_row", "tuned"]
    assert of_kind("stream") == ["stream 1"], "only slots below the batch"
    assert of_kind("peer") == ["peer masked"]
    assert by_name["stream 1"]["occupancy"] == by_name["tile 1"]["occupancy"] == 1.0
    assert by_name["peer masked"]["efficiency"] > 0 and by_name["tuned"]["target_mean"] == 0.75
    best = min(of_kind("executor") + of_kind("trial"), key=lambda name: by_name[name]["seconds"])
    assert by_name["tuned"]["tuned_over_best"] == 1.0 or best != "tuned"
    assert by_name["tuned"]["tuned_over_best"] > 0
    assert by_name["tuned"]["chosen"].split()[0] in ("compacted", "masked", "per_row")
    assert out.with_suffix(".png").stat().st_size > 1000
    assert {r["kind"] for r in plotted} == {"full", "executor", "stream", "peer"}, "no trials"
    printed = capsys.readouterr().out
    assert "tied, width 64" in printed and "tuned / best" in printed and "of 1 cells" in printed


def test_the_tuned_program_is_timed_again_with_the_fastest(monkeypatch):
    rounds = []

    def measured(calls, repeats):
        rounds.append((sorted(calls), repeats))
        return {"tuned": latency.Timing(3.0, 3.0, 3.0), "tile 4": latency.Timing(2.0, 2.0, 2.0)}

    monkeypatch.setattr(yardstick, "measure", measured)
    record = lambda program, kind, seconds: {"program": program, "kind": kind, "seconds": seconds}
    records = [
        record("full", "full", 0.1),
        record("tuned", "executor", 1.0),
        record("tile 4", "trial", 0.9),
    ]
    calls = dict.fromkeys(("full", "tuned", "tile 4"), lambda: None)
    assert yardstick._tuned_over_best(records, calls, 2) == 1.5
    assert rounds == [(["tile 4", "tuned"], 6)]
    records[2]["seconds"] = 1.1
    assert yardstick._tuned_over_best(records, {}, 2) == 1.0 and len(rounds) == 1


def test_the_command_runs_the_device_suite(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(device_suite, "units", lambda suite: [Unit("streaming", "all", 3.0)])
    out = tmp_path / "device.json"
    assert main(["bench", "--suite", "device", "--small", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert content["suite"] == "device" and content["options"]["small"] is True
    assert {r["section"] for r in content["records"]} == {"streaming"}
    assert "device suite (small)" in capsys.readouterr().out


def test_the_device_suite_has_its_own_options(capsys):
    assert main(["bench", "--suite=device", "--seconds", "-1"]) == 2
    assert "--seconds" in capsys.readouterr().err
    assert main(["bench", "--suite", "device", "--block", "tied"]) == 2
    assert "--block" in capsys.readouterr().err
    assert main(["bench", "--small"]) == 2
    assert "--small" in capsys.readouterr().err
    assert main(["bench", "--suite", "host"]) == 2
    assert "--suite" in capsys.readouterr().err
    (seconds,) = (flag for flag in bench.DEVICE if flag.name == "seconds")
    assert seconds.default == device_suite.SECONDS


def test_an_error_of_the_device_suite_is_the_exit_code(monkeypatch):
    run = lambda out, small, seconds: SimpleNamespace(errors=[(out, small, seconds)])
    monkeypatch.setattr(device_suite, "run", run)
    assert main(["bench", "--suite", "device"]) == 1
