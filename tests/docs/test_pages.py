"""The pages are true: their Python blocks run, and their links, files, tests, names and commands
exist.
"""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    if "_build" not in path.parts
}
BLOCK = re.compile(r"^```python\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
BLOCKS = {page: BLOCK.findall(text) for page, text in PAGES.items() if BLOCK.search(text)}

# Pages whose blocks do not run here, and why; the names that they use are checked all the same.
NOT_RUN = {
    "docs/benchmarks.md": "reads trained run folders, or takes minutes",
    "docs/tutorials/own_model.md": "tests/models/test_own_model_page.py runs its experiments",
    "docs/engine.md": "runs below, with eight devices",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(page: str) -> dict:
    """Runs the blocks of a page, in order, and returns their names."""
    names: dict = {"__name__": "__main__"}
    for k, source in enumerate(BLOCKS[page]):
        exec(compile(source, f"{page}, block {k}", "exec"), names)
    return names


@pytest.mark.parametrize("page", [p for p in BLOCKS if p not in {"README.md", *NOT_RUN}])
def test_python_blocks_run(page, folder):
    run(page)


def test_exceptions_are_pages_with_blocks():
    assert set(NOT_RUN) <= set(BLOCKS)


def attributes(source: str) -> set[str]:
    """Dotted names of dynexit that a block uses: `dx.criteria.patience`, `dynexit.core.x.y`."""
    tree = ast.parse(source)
    chains = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found = {f"dynexit.{c[3:]}" for c in chains if re.fullmatch(r"dx(\.\w+)+", c)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dynexit"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def resolve(name: str) -> None:
    """Imports the longest module of a dotted name and reads the rest of it, up to an object that
    is neither a module nor a class.
    """
    parts = name.split(".")
    value = importlib.import_module(parts[0])
    for k, part in enumerate(parts[1:], start=2):
        try:
            value = getattr(value, part)
        except AttributeError:
            value = importlib.import_module(".".join(parts[:k]))


@pytest.mark.parametrize("page", BLOCKS)
def test_names_in_blocks_exist(page):
    for source in BLOCKS[page]:
        for name in attributes(source):
            resolve(name)


# `dx.name` and `dynexit.name` in the text of the pages, in backticks
NAME = re.compile(r"`(?:dx|dynexit)\.([a-z_]+(?:\.[A-Za-z_][A-Za-z_0-9]*)*)")


@pytest.mark.parametrize("page", PAGES)
def test_names_in_the_text_exist(page):
    if page != "CHANGELOG.md":
        for name in NAME.findall(PAGES[page]):
            resolve(f"dynexit.{name}")


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_exist(page):
    text, path = PAGES[page], ROOT / page
    for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text):
        generated = "api/" in target and target.endswith(".rst")
        assert generated or (path.parent / target).exists(), target
    for file in re.findall(r"\b(?:experiments|tests|docs|colab)/[\w/]+\.\w+", text):
        assert (ROOT / file).exists(), file


@pytest.mark.parametrize("page", PAGES)
def test_anchors_exist(page):
    """`page.md#heading` names a heading of that page."""
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#\s]*)#([^)\s]+)\)", PAGES[page]):
        path = (ROOT / page).parent / target if target else ROOT / page
        headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
        assert anchor in slugs, f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_are_named_exist(page):
    for file, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", PAGES[page]):
        assert f"def {name}(" in (ROOT / file).read_text(), name


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page):
    from dynexit.cli.main import USAGE

    commands = set(re.findall(r"^  dynexit (\w+)", USAGE, flags=re.MULTILINE))
    code = re.findall(r"^```\n(.*?)^```$|`([^`\n]+)`", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join(fenced + inline for fenced, inline in code)
    used = re.findall(r"^dynexit ([a-z]\w*)", lines, flags=re.MULTILINE)
    assert set(used) <= commands
    if page == "README.md":
        assert set(re.findall(r"^\| `dynexit (\w+)", README, flags=re.MULTILINE)) == commands


OPTIONS = re.compile(r"dynexit train (experiments/\w+\.py)((?: --[\w.-]+(?: [^-\s`]\S*)*)*)")


@pytest.mark.parametrize("page", [p for p in PAGES if "dynexit train experiments/" in PAGES[p]])
def test_options_of_experiments_exist(page):
    """Every `--model.x` beside an experiment is a field of its settings."""
    from dynexit.cli.options import leaves
    from dynexit.runs.experiment_file import load

    for file, options in OPTIONS.findall(PAGES[page]):
        known = {f"--{name.replace('_', '-')}" for name, _ in leaves(load(ROOT / file).settings)}
        assert set(re.findall(r"--[\w.-]+", options)) <= known | {
            "--run",
            "--smoke",
            "--cache",
            "--profile",
        }, file


@pytest.mark.parametrize("page", [p for p in PAGES if re.search(r"--[a-z]+\.", PAGES[p])])
def test_options_in_the_text_are_settings_of_an_experiment(page):
    from dynexit.cli.options import leaves
    from dynexit.runs.experiment_file import load

    files = sorted((ROOT / "experiments").glob("*.py"))
    known = {name.replace("_", "-") for file in files for name, _ in leaves(load(file).settings)}
    used = re.findall(r"--([a-z]+\.[a-z-]+)", PAGES[page])
    assert set(used) <= known


def test_packages_are_those_of_the_architecture_page():
    source = (ROOT / "tests" / "test_floors.py").read_text()
    order = next(
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ORDER"
    )
    page = PAGES["docs/architecture.md"]
    table = page.split("<!-- packages -->")[1].split("<!-- /packages -->")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)) == order


@pytest.mark.slow
def test_the_table_of_devices_comes_from_the_example():
    (example,) = BLOCKS["docs/engine.md"]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    run = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, env=environment, check=True
    )
    printed = [float(line.split()[-1]) for line in run.stdout.splitlines()]
    page = PAGES["docs/engine.md"]
    rows = re.findall(r"^\| (?:8|64) \| (?:mixed|sorted) \| (.*) \|$", page, flags=re.MULTILINE)
    assert printed == [float(cell) for row in rows for cell in row.split(" | ")]


@pytest.mark.parametrize("page", BLOCKS)
def test_lines_of_blocks_are_short(page):
    assert [line for block in BLOCKS[page] for line in block.splitlines() if len(line) > 100] == []
