"""The benchmark of exits: forced depths, and one line for each program."""

import jax
import numpy as np
import pytest

import dynexit as dx
from dynexit.bench.exits import compared, main, programs_of


@pytest.mark.slow
def test_all_programs_run_the_forced_depths():
    model = dx.models.CausalLM(width=16, depth=2, heads=2).build(dx.Tokens(30), 30)
    weights = model.decoder.unstack(model.init(jax.random.key(0)))
    deep = np.random.default_rng(0).random((3, 6)) < 0.5
    programs = programs_of(deep, 1, [2])
    found = {t.name: t for t in compared(model, weights, programs, 3, 4, 6, 1)}
    assert list(found) == list(programs) and all(t.seconds > 0 for t in found.values())
    assert all((depth == 2).all() for depth in found.pop("full depth").depths)
    for timed in found.values():
        for row, depth in zip(np.where(deep, 2, 1), timed.depths, strict=True):
            assert 1 < len(depth) < 6 and (depth == row[: len(depth)]).all()
    assert found["masked, park=2"].mean_blocks < found["masked"].mean_blocks


@pytest.mark.slow
def test_a_table_is_printed(capsys):
    small = "--width 16 --depth 2 --after 1 --tokens 4 --prompt 2 --repeats 1 --park 1"
    assert main([*small.split(), "--batches", "1"]) == 0
    names = [
        line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if "|" in line
    ]
    assert names[2:] == ["full depth", "masked", "compacted", "masked, park=1", "compacted, park=1"]
