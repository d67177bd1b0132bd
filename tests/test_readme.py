"""The README is true: its examples run as they stand, its links and files exist, its commands are
those of the program.
"""

import re
from pathlib import Path

import jax
import pytest

from dynexit.cli.main import USAGE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FENCES = re.findall(r"^```python\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def test_every_python_example_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert FENCES
    for source in FENCES:
        names: dict = {}
        exec(compile(source, "README.md", "exec"), names)
    # what the text below the example says that it prints, and how far another CPU's rounding was
    # seen to move it
    said = re.search(r"printed `([\d.]+) ([\d.]+) (\[.*?\]) (\d+) of (\d+)`", README)
    printed = re.fullmatch(r"([\d.]+) ([\d.]+) (\[.*?\]) (\d+) of (\d+)\n", capsys.readouterr().out)
    assert said and printed
    assert float(printed[1]) == pytest.approx(float(said[1]), abs=0.02)
    assert printed[2] in ("0.5", "0.7") and printed[5] == said[5]
    assert int(printed[4]) == pytest.approx(int(said[4]), rel=0.25)
    # and it does what it is there for: rows leave at different depths, for less work, with the
    # answers of the replay
    dx, halted, step, x, test = (names[n] for n in ("dx", "halted", "step", "x", "test"))
    assert len(set(halted.exit_depth.tolist())) > 1
    assert int(halted.exit_depth.sum()) <= int(halted.rows_executed) < 6 * 397 // 2
    again = dx.replay(names["leave"](names["threshold"]), dx.run_all(step, x[test], depth=6))
    assert (jax.device_get(again.exit_depth) == jax.device_get(halted.exit_depth)).mean() > 0.99


def test_the_first_example_is_short_and_takes_nothing_but_jax_and_data():
    assert len(FENCES[0].splitlines()) <= 30
    imported = re.findall(r"^(?:import|from) (.*)$", FENCES[0], flags=re.MULTILINE)
    assert imported == [
        "jax, jax.numpy as jnp",
        "sklearn.datasets import load_digits",
        "dynexit as dx",
    ]


def test_every_command_that_is_described_is_one_of_the_program():
    described = set(re.findall(r"^\| `dynexit (\w+)", README, flags=re.MULTILINE))
    assert described == set(re.findall(r"^  dynexit (\w+)", USAGE, flags=re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for file in re.findall(r"\b(?:experiments|tests|docs|colab)/[\w/]+\.\w+", text):
        assert (ROOT / file).exists(), file


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_exist(page):
    for file, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", page.read_text()):
        assert f"def {name}(" in (ROOT / file).read_text(), name


def test_the_table_of_results_has_its_columns_and_experiments():
    table = README.split("<!-- results -->\n")[1].split("<!-- /results -->")[0].strip().splitlines()
    assert (
        table[0].count("|") == 9
        and "measured speed-up" in table[0]
        and "efficiency (masked)" in table[0]
    )
    assert all(row.count("|") == 9 for row in table)
    assert len(table) > 2 and all(re.match(r"\| `experiments/\w+\.py", row) for row in table[2:])
