"""One file for every batch size and platform, read back by a process that cannot import dynexit."""

import collections
import os
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from without_dynexit import read_without_dynexit

import dynexit as dx

MOST, SIZES = 30, (1, 3, 13, 30)


def load(artifact):
    return jax.jit(jax.export.deserialize(bytearray(artifact.path.read_bytes())).call)


def test_one_file_serves_every_batch_size_without_dynexit(tmp_path):
    flat, stages = oracle.homogeneous(MOST), oracle.staged(MOST)
    either = dx.criteria.any_of(
        dx.criteria.max_probability_above(0.7), dx.criteria.cumulative_halting_above(0.9)
    )
    sure = lambda thresholds: dx.criteria.max_probability_above(thresholds)
    with_thresholds = lambda s, thresholds: dx.run_until(
        flat.step, s, flat.depth, sure(thresholds), tile=4
    )
    dx.export(with_thresholds, flat.state, tmp_path / "flat", arguments=[jnp.full(5, 0.5)])
    dx.export(
        lambda s: dx.run_until(stages.step, s, stages.depth, either, tile=4),
        stages.state,
        tmp_path / "stages",
    )

    first = lambda tree, rows: jax.tree.map(lambda a: a[:rows], tree)
    thresholds = {rows: jnp.full(5, 0.45 + 0.01 * rows) for rows in SIZES}
    calls = [("flat", (first(flat.state, rows), thresholds[rows])) for rows in SIZES]
    calls += [("stages", (first(stages.state, rows),)) for rows in (3, 13)]
    results = read_without_dynexit(tmp_path, calls)

    depths = set()
    for (name, passed), result in zip(calls, results, strict=True):
        problem = (flat if name == "flat" else stages)._replace(state=passed[0])
        assert type(result) is dict and list(result) == sorted(dx.Halted._fields)
        criterion = sure(passed[1]) if name == "flat" else either
        oracle.assert_equal(
            SimpleNamespace(**{**result, "memory": dx.Memory(**result["memory"])}),
            oracle.run_rows(problem, criterion),
            check_state=name == "flat",
        )
        depths |= set(result["exit_depth"].tolist())
    assert len(depths) > 3
    here = dx.run_until(flat.step, first(flat.state, 13), flat.depth, sure(thresholds[13]))
    np.testing.assert_array_equal(results[2]["exit_depth"], here.exit_depth)
    np.testing.assert_allclose(
        results[2]["output"]["logits"], here.output["logits"], rtol=1e-5, atol=1e-5
    )


def countdown(tile):
    """Rows that carry the depth at which they want to leave; the output says how many blocks a row
    has seen.
    """

    def run(depths):
        step = dx.Step(
            lambda i: (),
            lambda w, i, h: (
                {**h, "seen": h["seen"] + 1},
                jnp.stack([h["seen"] + 1, h["wanted"]], 1),
            ),
        )
        leave = dx.Criterion(
            lambda i, output, memory: (output[:, 0] >= output[:, 1], memory),
            lambda i, reached, memory: (reached, memory),
        )
        halted = dx.run_until(
            step, {"seen": jnp.zeros_like(depths), "wanted": depths}, 6, leave, tile=tile
        )
        return halted.output[:, 0], halted.rows_executed

    return run


def test_the_file_computes_no_row_beyond_its_depth(tmp_path):
    run = load(
        dx.export(countdown(dx.Tiling((4, 1), (4.0, 1.0))), jnp.zeros(5, jnp.int32), tmp_path / "f")
    )
    for rows in (1, 13, 50):
        depths = np.random.default_rng(rows).integers(1, 7, rows).astype(np.int32)
        seen, executed = run(depths)
        np.testing.assert_array_equal(seen, depths)
        assert int(executed) == depths.sum()


def test_what_is_recorded(tmp_path):
    weights = {"w": np.ones((4, 2), np.float32)}
    artifact = dx.export(
        lambda x, p: {"y": x["x"] @ p["w"]},
        {"x": jnp.ones((3, 4))},
        str(tmp_path / "f"),
        (weights,),
        platforms=("tpu", "cpu"),
    )
    read = jax.export.deserialize(bytearray((tmp_path / "f").read_bytes()))
    assert artifact.path == tmp_path / "f" and artifact.bytes == artifact.path.stat().st_size
    assert artifact.platforms == read.platforms == ("tpu", "cpu") and artifact.batch == "any"
    assert (
        str(artifact.inputs["x"].shape)
        == str(artifact.outputs["y"].shape).replace("2", "4")
        == "(b, 4)"
    )
    assert artifact.arguments == ({"w": jax.ShapeDtypeStruct((4, 2), jnp.float32)},)
    assert sorted(os.listdir(tmp_path)) == ["f"]
    every = dx.export(lambda x: x, jax.ShapeDtypeStruct((3,), jnp.int32), tmp_path / "f")
    assert every.platforms == ("cpu", "cuda", "tpu") and every.inputs.dtype == jnp.int32


class Pair(NamedTuple):
    z: jax.Array
    a: jax.Array


def test_named_tuples_are_dicts_to_the_reader(tmp_path):
    swap = lambda x, more: (
        Pair(z=x.a, a=x.z),
        [None, collections.OrderedDict(b=more["b"], a=Pair(*more["a"]))],
    )
    artifact = dx.export(
        swap, Pair(jnp.zeros(2), jnp.zeros((2, 1))), tmp_path / "f", ({"b": 1.0, "a": (2, 3.0)},)
    )
    result = load(artifact)(
        {"z": np.ones(3, np.float32), "a": np.zeros((3, 1), np.float32)}, {"b": 1.0, "a": (2, 3.0)}
    )
    assert jax.tree.map(
        lambda a: (a.shape, float(a.ravel()[0])), result, is_leaf=lambda a: hasattr(a, "shape")
    ) == (
        {"z": ((3, 1), 0.0), "a": ((3,), 1.0)},
        [None, {"b": ((), 1.0), "a": {"z": ((), 2.0), "a": ((), 3.0)}}],
    )


def test_a_function_that_needs_its_number_of_rows_gets_one(tmp_path):
    depths = jnp.array([1, 3, 2])
    step = dx.stacked_step(lambda p, h: h + p, lambda p, h: h, jnp.ones(3))
    run = lambda x: dx.run_until(step, x, 3, dx.criteria.at_depth(depths)).exit_depth
    with pytest.raises(
        ValueError,
        match=r"`function` cannot be traced for any number of rows \(.*or give `batch` as",
    ):
        dx.export(run, jnp.zeros(3), tmp_path / "f")
    with pytest.raises(
        ValueError, match=r"cannot be traced for any number of rows .*cannot reshape"
    ):
        dx.export(lambda x: x.reshape(3, 1), jnp.zeros(3), tmp_path / "f")
    artifact = dx.export(run, jnp.zeros(1), tmp_path / "f", batch=3)
    assert artifact.batch == 3 and artifact.inputs.shape == artifact.outputs.shape == (3,)
    np.testing.assert_array_equal(load(artifact)(jnp.zeros(3)), depths)


ROWS = jnp.zeros((2, 3))
SHARDED = lambda x: jax.lax.with_sharding_constraint(
    x, jax.NamedSharding(jax.sharding.Mesh(np.array(jax.devices()), ("d",)), jax.P("d"))
)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (dict(function=7), TypeError, "`function` must be callable, got int"),
        (dict(function=lambda x: x.sum(axis=7)), ValueError, "^axis 7 is out of bounds"),
        (
            dict(function=lambda x: dx.criteria.patience(1)),
            TypeError,
            r"`function\(...\)` is a Criterion, which does not exist without",
        ),
        (
            dict(function=lambda x: [{1: x}]),
            TypeError,
            r"`function\(...\)\[0\]` is a dict whose keys are not all strings: \[1\]",
        ),
        (
            dict(function=lambda x: (jax.debug.print("{}", x), x)[1]),
            ValueError,
            "`function` must not call back into Python",
        ),
        (dict(function=SHARDED), ValueError, "`function` is sharded over 4 devices"),
        (dict(example={}), ValueError, "`example` holds no arrays"),
        (dict(example=jnp.zeros((0, 3))), ValueError, r"`example` is an empty batch \(0 rows\)"),
        (dict(example={"x": 1.0}), ValueError, r"`example`\['x'\]"),
        (dict(example=["text"]), TypeError, r"`example\[0\]` must be an array, got str"),
        (
            dict(arguments=0.5),
            TypeError,
            "`arguments` must be a tuple or a list, one entry per argument, got float",
        ),
        (
            dict(arguments=(dx.criteria.patience(1),)),
            TypeError,
            r"`arguments\[0\]` is a Criterion, which does not exist without",
        ),
        (dict(arguments=("text",)), TypeError, r"`arguments\[0\]` must be an array, got str"),
        (dict(batch="all"), ValueError, "`batch` must be 'any' or a number of rows, got 'all'"),
        (dict(batch=0), ValueError, "`batch` must be at least 1, got 0"),
        (
            dict(platforms="cpu"),
            TypeError,
            r"`platforms` must be a sequence of names such as \('cpu', 'tpu'\), got 'cpu'",
        ),
        (
            dict(platforms=("gpu",)),
            ValueError,
            r"`platforms` must be different ones of 'cpu', 'cuda', 'rocm', 'tpu', got \('gpu',\)",
        ),
        (dict(platforms=()), ValueError, r"`platforms` must be different ones of .* got \(\)"),
        (dict(path=7), TypeError, "`path` must be a string or a path, got int"),
        (
            dict(path="missing/f"),
            FileNotFoundError,
            r"`path` cannot be written \(No such file or directory\): 'missing/f'",
        ),
        (dict(path="."), IsADirectoryError, r"`path` cannot be written \(Is a directory\)"),
    ],
)
def test_bad_input_is_refused_by_name(arguments, kind, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message):
        dx.export(**{"function": lambda x, *more: x, "example": ROWS, "path": "f", **arguments})
    assert list(Path().iterdir()) == []


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path):
    path = tmp_path / "f"
    path.write_text("what was there")

    def fails(x):
        assert [p.name for p in tmp_path.iterdir() if p != path], (
            "the draft is opened before the work"
        )
        raise KeyError("in the middle")

    with pytest.raises(KeyError):
        dx.export(fails, ROWS, path)
    assert path.read_text() == "what was there" and os.listdir(tmp_path) == ["f"]
    dx.export(lambda x: x, ROWS, path)
    assert load(dx.export(lambda x: x + 1, ROWS, path))(ROWS).sum() == 6 and os.listdir(
        tmp_path
    ) == ["f"]
