"""The device suite in small form: every section measures, errors and skips are recorded."""

import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.bench import device_suite
from dynexit.bench.device import blocks, candidates, decoding, loops, timing, training, vit
from dynexit.bench.device.state import State
from dynexit.core.data import Tokens

HEAVY = ("tyro", "tensorflow_datasets", "wandb", "rich", "tqdm", "orbax", "optax", "matplotlib")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("device") / "small.json"
    return device_suite.run(path, small=True, seconds=600), json.loads(path.read_text())


def test_every_section_records_finite_positive_numbers(small):
    suite, content = small
    assert content["errors"] == []
    assert content["elapsed"] > 0
    assert content["hardware"]["platform"] == "cpu" and content["hardware"]["versions"]["jax"]
    sections = {r["section"] for r in content["records"]}
    assert {"loops", "tiles", "blocks", "training", "streaming", "decoding"} <= sections
    for record in content["records"]:
        for name, value in record.items():
            if isinstance(value, float) and name != "error":
                positive = value > 0 or name == "acceptance_to_gain"
                assert math.isfinite(value) and positive, (record["program"], name, value)
        if "low" in record:
            assert record["low"] <= record["seconds"] <= record["high"]
        if record["section"] in ("blocks", "streaming"):
            assert 0 < record.get("occupancy", 1.0) <= 1
            assert record["efficiency"] == pytest.approx(record["ideal"] / record["seconds"])
    assert content["records"] == json.loads(json.dumps(suite.records))


def test_programs_agree_with_run_all_at_their_exits(small):
    records = [
        r for r in small[1]["records"] if r["section"] in ("blocks", "training", "streaming")
    ]
    assert len(records) > 15
    assert all(r["agrees"] for r in records)
    names = {r["program"] for r in records if r["section"] == "blocks"}
    assert {"full", "masked", "compacted", "tuned", "shrinking loops", "host loop"} <= names


def test_skipped_sections_are_recorded_with_a_reason(small):
    skipped = {s["section"]: s["reason"] for s in small[1]["skipped"]}
    assert "not applicable" in skipped["loops"]


def test_the_table_names_every_program(small):
    table = device_suite.report.table(small[0])
    assert all(r["program"] in table for r in small[0].records if r["section"] != "tiles")
    assert "WRONG" not in table and "ERROR" not in table


@pytest.mark.slow
def test_tokens_with_exits_are_recorded_at_their_depths():
    suite = State(None, True, 600.0, {})
    model = decoding.SMALL.build(Tokens(64), 64)
    weights = model.decoder.unstack(model.init(jax.random.key(0)))
    decoding.add_exits(suite, model, weights, 4, 1, {"section": "decoding"})
    full, *others = suite.records
    assert full["mean_depth"] == 4 and full["relative"] == 1 and len(others) == 4
    assert all(1 < r["mean_depth"] < 2 and r["seconds"] > 0 for r in others)


def test_a_failing_section_is_recorded_and_others_run(tmp_path, monkeypatch, capsys):
    def fails(suite, *arguments):
        raise RuntimeError("a failure")

    def adds(suite, *arguments):
        suite.add({"section": "loops", "program": "x", "variant": "v", "microseconds": 1.0})

    monkeypatch.setattr(device_suite, "PARTS", dict.fromkeys(device_suite.PARTS, fails))
    monkeypatch.setitem(device_suite.PARTS, "streaming", adds)
    arguments = ["--out", str(tmp_path / "out.json"), "--small"]
    arguments += ["--sections", "blocks", "streaming"]
    assert device_suite.main(arguments) == 1
    content = json.loads((tmp_path / "out.json").read_text())
    (error,) = content["errors"]
    assert error["section"] == "blocks" and "a failure" in error["error"]
    assert [r["program"] for r in content["records"]] == ["x"]
    assert "ERROR: blocks" in capsys.readouterr().out


def test_units_beyond_the_budget_are_skipped(tmp_path):
    path = tmp_path / "out.json"
    device_suite.run(path, small=True, seconds=0.0)
    content = json.loads(path.read_text())
    assert content["records"] == [] and content["errors"] == []
    assert {s["section"] for s in content["skipped"]} == set(device_suite.NAMES)
    assert sum("time budget" in s["reason"] for s in content["skipped"]) >= 5


def test_a_wrong_exit_and_a_nan_are_recorded_as_errors():
    suite = State(None, True, 60.0, {})
    made = vit.problem(suite.shape, 8)
    outputs = blocks.reference_outputs(made)
    depths = timing.prescribed(suite.shape.depth, 0.5, 8)
    expected = vit.at_exits(outputs, depths)
    assert suite.agreement("blocks", "right", expected, expected, "float32")["agrees"]
    one_row = depths.copy()
    one_row[3] = depths[3] % suite.shape.depth + 1
    wrong = vit.at_exits(outputs, one_row)
    for dtype in ("float32", "bfloat16"):
        assert not suite.agreement("blocks", "wrong", wrong, expected, dtype)["agrees"]
    assert not suite.agreement("blocks", "NaN", expected * np.nan, expected, "float32")["agrees"]
    assert [e["what"] for e in suite.errors] == ["wrong", "wrong", "NaN"]


def test_a_nan_gradient_is_recorded_as_an_error():
    suite = State(None, True, 60.0, {})
    _, params, state = vit.problem(suite.shape, 4)
    arguments = params, state, jnp.zeros(4, jnp.int32), jnp.ones(4, jnp.int32)
    loss = training.losses(suite.shape)["run_full"][0](*arguments)
    program = lambda gradient: timing.Compiled(lambda *_: (loss, gradient), 0.0, {})
    assert training._check(suite, {"run_full": program(params)}, arguments)["run_full"]["agrees"]
    damaged = {name: a * np.nan for name, a in params.items()}
    found = training._check(suite, {"run_full": program(damaged)}, arguments)
    assert not found["run_full"]["agrees"] and [e["what"] for e in suite.errors] == ["run_full"]


@pytest.mark.parametrize("sizes", [(6,), (6, 3, 1), (6, 4, 3, 2, 1)])
def test_candidates_agree_with_run_all(sizes):
    made = vit.problem(vit.SMALL, 6)
    depth = made.shape.depth
    outputs = blocks.reference_outputs(made)
    make = lambda p: vit.stacked(made.shape, p)
    loop = candidates.HostLoop(make, depth, sizes)
    for depths in ([1, 2, 3, 4, 5, 6], [1] * 6, [6] * 6, [2, 6, 2, 2, 2, 2]):
        wanted, placed = np.array(depths, np.int32), jnp.array(depths, jnp.int32)
        expected = vit.at_exits(outputs, wanted)
        in_one = candidates.shrinking(make(made.params), made.state, placed, depth, sizes)
        for output, exits, executed in (in_one, loop(made.params, made.state, placed)):
            np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(exits, wanted)
            assert wanted.sum() <= int(executed) <= 6 * wanted.max()


@pytest.mark.parametrize("batch, mean", [(8, 0.25), (64, 0.5), (256, 0.75), (256, 0.25)])
def test_prescribed_depths_have_the_target_mean(batch, mean):
    depths = timing.prescribed(12, mean, batch)
    assert depths.min() >= 1 and depths.max() <= 12
    assert abs(depths.mean() / 12 - mean) < 0.04


def test_processes_run_with_flags_and_rejected_flags_are_skipped(monkeypatch):
    flags = {
        "default": ("",),
        "other": ("--xla_no_such_flag=1", "--xla_cpu_enable_fast_math=false"),
    }
    monkeypatch.setattr(loops, "FLAGS", flags)
    suite = State(None, True, 300.0, {})
    suite.loop_iterations = 20
    loops._in_children(suite)
    assert [s["what"] for s in suite.skipped] == ["--xla_no_such_flag=1"]
    assert {r["variant"] for r in suite.records} == {"default", "other"}
    assert {r["flags"] for r in suite.records} == {"", "--xla_cpu_enable_fast_math=false"}
    assert all(r["seconds"] > 0 for r in suite.records)


def test_the_suite_imports_no_training_dependencies():
    program = f"""
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
from dynexit.bench import device_suite
device_suite.run(small=True, seconds=0.0)
print(*{{m.split(".")[0] for m in sys.modules}})
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & set(HEAVY)


def test_unknown_names_raise_an_error():
    with pytest.raises(ValueError, match="`sections`"):
        device_suite.run(sections=["bloks"])
    with pytest.raises(ValueError, match="`changes`"):
        device_suite.run(sections=["decoding"], changes={"bathces": (1,)})
