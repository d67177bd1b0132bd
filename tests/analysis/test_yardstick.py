"""The yardstick: depths as asked for, blocks that keep rows apart, records that add up, and a peer that computes the same."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.analysis import yardstick
from dynexit.analysis.torch_peer import regrouping
from dynexit.analysis.yardstick import DISTRIBUTIONS, Cell, draw, problem, run_cell
from dynexit.cli.main import main


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("mean", [0.25, 0.5, 0.75])
def test_depths_have_the_mean_asked_for(distribution, mean):
    depths = draw(distribution, mean, 12, 20_000)
    assert depths.min() >= 1 and depths.max() <= 12 and depths.dtype == np.int32
    np.testing.assert_allclose(depths.mean() / 12, mean, atol=0.02)
    distinct = {"together": 1, "bimodal": 2}.get(distribution, 5)
    assert len(set(depths.tolist())) >= distinct
    np.testing.assert_array_equal(draw(distribution, 1.0, 12, 7), 12)


@pytest.mark.parametrize("block", ["transformer", "tied", "mixer", "conv"])
def test_blocks_keep_rows_apart_and_finite(block):
    step, params, state = problem(Cell(block, 64, 4, 3, 3, "float32"))
    dx.check_row_independence(step(params), state)
    outputs = dx.run_all(step(params), state, 3)
    assert outputs.shape == (3, 3, yardstick.CLASSES) and bool(jnp.isfinite(outputs).all())
    assert float(jnp.abs(outputs[0] - outputs[2]).max()) > 1e-3, "blocks must do something"


def test_records_add_up():
    said = []
    cell = Cell("mixer", 64, 4, 3, 4, "float32")
    records = run_cell(cell, [("bimodal", 0.5)], repeats=1, peers={}, say=said.append)
    by_name = {r["program"]: r for r in records}
    assert {"full", "compacted", "tuned", "masked", "per_row"} <= set(by_name) and "tiles of" in said[0]
    best = min(r["seconds"] for name, r in by_name.items() if name.startswith("full"))
    for r in records:
        np.testing.assert_allclose(r["speedup"], best / r["seconds"])
        if "efficiency" in r:
            np.testing.assert_allclose(r["efficiency"], r["speedup"] * r["mean"])
        assert r["low"] <= r["seconds"] <= r["high"] and r["compile_seconds"] > 0
    depths = draw("bimodal", 0.5, 3, 4)
    np.testing.assert_allclose(by_name["masked"]["occupancy"], depths.sum() / (4 * depths.max()))
    assert by_name["per_row"]["occupancy"] == 1.0


@pytest.mark.parametrize("block", ["transformer", "tied"])
def test_the_pytorch_peer_computes_the_same(block):
    pytest.importorskip("torch")
    cell = Cell(block, 64, 4, 3, 5, "float32")
    step, params, state = problem(cell)
    depths = np.array([1, 3, 2, 1, 3], np.int32)
    mine = dx.run_until(step(params), state, 3, dx.criteria.at_depth(jnp.asarray(depths))).output
    np.testing.assert_allclose(regrouping(cell, yardstick.Problem(step, params, state), depths)(), mine, atol=1e-4)
    with pytest.raises(ValueError, match="the PyTorch peer has float32 transformers alone, got mixer in float32"):
        regrouping(cell._replace(block="mixer"), yardstick.Problem(step, params, state), depths)


def test_the_command_writes_its_records_and_a_figure(tmp_path, capsys):
    out = tmp_path / "bench.json"
    words = "bench --block mixer --width 64 --tokens 4 --depth 2 --batch 2 --mean 0.75 --repeats 1 --out".split()
    assert main([*words, str(out)]) == 0
    content = json.loads(out.read_text())
    assert {r["program"] for r in content["records"]} >= {"full", "compacted", "masked"} and content["versions"][
        "jax"
    ] == jax.__version__
    assert out.with_suffix(".png").stat().st_size > 1000
    assert "mixer, width 64" in capsys.readouterr().out
