"""The README's examples run and print what the text says; it stays short."""

import re
from pathlib import Path

import jax
import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
IDEA, WHOLE = re.findall(r"^```python\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
PRINTED = r"([\d.]+) ([\d.]+) (\[.*?\]) (\d+) of (\d+)"


def test_the_idea_prints_what_its_comment_says(capsys):
    exec(compile(IDEA, "README.md", "exec"), {})
    assert f"# {capsys.readouterr().out.strip()}\n" in IDEA


def test_the_whole_example_runs(capsys):
    names: dict = {}
    exec(compile(WHOLE, "README.md", "exec"), names)
    # the text has the numbers of one machine, and how far the rounding of others moved them
    written = re.search(rf"prints `{PRINTED}`", README)
    printed = re.fullmatch(rf"{PRINTED}\n", capsys.readouterr().out)
    assert written and printed
    assert float(printed[1]) == pytest.approx(float(written[1]), abs=0.02)
    assert printed[2] in ("0.5", "0.7") and printed[5] == written[5]
    assert int(printed[4]) == pytest.approx(int(written[4]), rel=0.25)
    # rows exit at different depths, for less work, and as the replay says
    dx, halted, step, x, test = (names[n] for n in ("dx", "halted", "step", "x", "test"))
    assert len(set(halted.exit_depth.tolist())) > 1
    assert int(halted.exit_depth.sum()) <= int(halted.rows_executed) < 6 * 397 // 2
    again = dx.replay(names["rule"](names["threshold"]), dx.run_all(step, x[test], depth=6))
    assert (jax.device_get(again.exit_depth) == jax.device_get(halted.exit_depth)).mean() > 0.99


def test_it_is_short():
    assert len(README.split()) <= 900
    assert len(WHOLE.splitlines()) <= 30
    imported = re.findall(r"^(?:import|from) (.*)$", WHOLE, flags=re.MULTILINE)
    assert imported == [
        "jax, jax.numpy as jnp",
        "sklearn.datasets import load_digits",
        "dynexit as dx",
    ]


def test_the_table_of_results_has_its_columns_and_experiments():
    table = README.split("<!-- results -->\n")[1].split("<!-- /results -->")[0].strip().splitlines()
    assert all(row.count("|") == 9 for row in table)
    assert "measured speed-up" in table[0] and "efficiency (masked)" in table[0]
    assert len(table) > 2 and all(re.match(r"\| `experiments/\w+\.py", row) for row in table[2:])
