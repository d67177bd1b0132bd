"""Costs kept in a file or handed in: what is measured again and what is not, and files that cannot
be used.
"""

import concurrent.futures
import importlib
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import dynexit as dx
from dynexit.engine.tuning import tune_cache

module = importlib.import_module(
    "dynexit.engine.tuning.tune"
)  # the package holds the function of that name


@pytest.fixture
def measured(monkeypatch):
    """Stages that were measured, by their first exit; a tile of s rows takes 1 + s seconds."""
    stages = []

    def measure(stage, state, batch, sizes, repeats):
        stages.append(stage.first)
        return {s: 1.0 + s for s in sizes}

    monkeypatch.setattr(module, "_measure", measure)
    return stages


def tune(problem, **arguments):
    return dx.tune(problem.step, problem.state, problem.depth, **arguments)


def test_a_second_call_measures_nothing_and_plans_anew(measured, monkeypatch, tmp_path):
    problem, cache = oracle.staged(), tmp_path / "deep" / "costs.json"
    first = tune(problem, cache=cache)
    assert measured == [0, 2, 3, 6] and first.origin == "measured" and "cache" not in str(first)
    monkeypatch.setattr(module, "_entering", None)  # the network is not run either
    second = tune(problem, cache=str(cache), exits=np.array([0, 0, 0, 6]))
    assert len(measured) == 4 and second.costs == first.costs and second.origin == "cache"
    assert str(second).endswith("; costs from the cache")
    assert second.seconds["compacted"] < first.seconds["compacted"], "most rows leave at once"
    assert list(cache.parent.iterdir()) == [cache], "no temporary file is left"


def test_other_weights_of_the_same_network_have_the_same_costs(measured, tmp_path):
    for seed in (0, 1):
        tune(oracle.homogeneous(seed=seed), cache=tmp_path / "c.json")
    assert measured == [0]


@pytest.mark.parametrize("what", ["batch", "depth", "sizes", "dtype", "block", "cores", "jax"])
def test_what_costs_depend_on_is_measured_again(measured, monkeypatch, tmp_path, what):
    cache, problem, arguments = tmp_path / "c.json", oracle.homogeneous(rows=6, blocks=3), {}
    tune(problem, cache=cache)
    if what == "batch":
        problem = oracle.homogeneous(rows=5, blocks=3)
    elif what == "depth":
        problem = problem._replace(depth=2)
    elif what == "sizes":
        arguments = {"sizes": (1, 6)}
    elif what == "dtype":
        problem = problem._replace(
            step=jax.tree.map(lambda a: a.astype(jnp.bfloat16), problem.step),
            state=jax.tree.map(jnp.bfloat16, problem.state),
        )
    elif what == "block":
        another = lambda p, h: oracle.block(p, oracle.block(p, h))
        problem = problem._replace(
            step=dx.stacked_step(another, oracle.head, oracle.parameters(jax.random.key(0), 3))
        )
    elif what == "cores":
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(77)))
    else:
        monkeypatch.setattr(jax, "__version__", "77.0")
    for _ in range(2):
        tune(problem, cache=cache, **arguments)
    assert measured == [0, 0], "once for each, and both are kept"
    assert len(json.loads(cache.read_text())["costs"]) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"form',
        b"[]",
        b"7",
        b'{"a": 1}',
        b'{"format": "other", "costs": {}}',
        b"\xff\xfe",
        b"[" * 10**5,
    ],
)
def test_a_file_that_cannot_be_read_is_said_and_written_over(measured, tmp_path, content):
    cache, problem = tmp_path / "c.json", oracle.homogeneous(rows=3, blocks=2)
    cache.write_bytes(content)
    with pytest.warns(
        UserWarning,
        match=r"`cache` .*c\.json is not a file of tile costs \(.*overwritten",
    ):
        tune(problem, cache=cache)
    assert tune(problem, cache=cache).origin == "cache" and measured == [0]


@pytest.mark.parametrize(
    "entry",
    [7, [], [{"1": 1.0}], [{"1": 1.0, "2": -1.0, "3": 2.0}], [{"1": None, "2": 1.0, "3": 2.0}]],
)
def test_a_damaged_entry_is_said_and_measured_again(measured, tmp_path, entry):
    cache, problem = tmp_path / "c.json", oracle.homogeneous(rows=3, blocks=2)
    tune(problem, cache=cache)
    content = json.loads(cache.read_text())
    (key,) = content["costs"]
    content["costs"] = {key: entry, "another": [{"1": 1.0}]}
    cache.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="has an invalid entry for cpu, .* batch 3, sizes 1/2/3"):
        tune(problem, cache=cache)
    assert tune(problem, cache=cache).origin == "cache" and measured == [0, 0]
    assert "another" in json.loads(cache.read_text())["costs"]


def test_a_file_that_cannot_be_written_loses_nothing_but_time(measured, tmp_path, recwarn):
    (tmp_path / "file").write_text("")
    assert (
        tune(oracle.homogeneous(rows=3, blocks=2), cache=tmp_path / "file" / "c.json").origin
        == "measured"
    )
    assert any("could not be written" in str(w.message) for w in recwarn)


def test_those_who_write_at_once_lose_nothing(tmp_path):
    path = tmp_path / "c.json"
    keys = [f"key {k}" for k in range(60)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda key: tune_cache.write(path, key, ({1: 1.0},)), keys))
    assert sorted(json.loads(path.read_text())["costs"]) == sorted(keys) and list(
        tmp_path.iterdir()
    ) == [path]


def test_costs_handed_in_are_not_measured(measured):
    problem = oracle.homogeneous(rows=6)
    first = tune(problem)
    again = tune(problem, costs=first.costs, exits=np.array([0, 5]))
    assert (
        measured == [0] and again.costs == first.costs and str(again).endswith("; costs as given")
    )
    assert again == tune(problem, exits=np.array([0, 5]))._replace(origin="given")
    assert tune(problem, costs=list(first.costs), sizes=(1, 4)).costs == ({1: 2.0, 4: 5.0},)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(cache="c.json", costs=({1: 1.0},)), "`cache` and `costs` must not both be given"),
        (dict(cache="."), "`cache` must be the path of a JSON file, got the folder"),
        (
            dict(costs=()),
            "`costs` must be `Tuned.costs`, seconds by rows of a tile for each of the 1 stages",
        ),
        (dict(costs=({},)), "`costs` must be `Tuned.costs`"),
        (
            dict(costs=({1: 1.0, 14: 2.0},)),
            r"`costs` must be positive seconds of tiles of 1\.\.13 rows",
        ),
        (dict(costs=({1: 0.0},)), r"`costs` must be positive seconds of tiles of 1\.\.13 rows"),
        (
            dict(costs=({1: 1.0},), sizes=(1, 2)),
            r"`costs` must contain all `sizes`, got none for \[2\]",
        ),
    ],
)
def test_faulty_costs_and_caches_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tune(oracle.homogeneous(), **arguments)


def test_a_cache_that_is_no_path_is_refused():
    with pytest.raises(TypeError, match="`cache` must be the path of a JSON file, got bool"):
        tune(oracle.homogeneous(), cache=True)
