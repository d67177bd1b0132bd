"""The size of the compacted program beside the masked one; seconds are for the command to tell."""

import pytest

from dynexit.bench.compile_time import lowered, main, measure, mlp, transformer


@pytest.mark.parametrize("make, most", [(mlp, 2.5), (transformer, 2.5)])
def test_the_compacted_program_is_a_few_times_the_masked_one(make, most):
    lines = {e: len(lowered(make(), e).as_text().splitlines()) for e in ("masked", "compacted")}
    assert lines["masked"] < lines["compacted"] <= most * lines["masked"]


def test_measuring_changes_no_setting():
    import jax

    before = jax.config.jax_enable_compilation_cache
    found = measure(mlp(width=8, batch=4), repeats=1)
    assert jax.config.jax_enable_compilation_cache == before
    assert all(of.compiling > 0 and of.lowering > 0 and of.lines > 50 for of in found.values())


def test_the_command_says_both_ratios(capsys, monkeypatch):
    module = main.__globals__
    monkeypatch.setitem(module, "transformer", lambda batch: mlp(width=8, batch=batch))
    assert main(["--repeats", "1", "--batch", "4"]) == 0
    assert capsys.readouterr().out.count("compacted / masked") == 2
