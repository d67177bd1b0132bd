"""The house: imports go down the floors of docs/architecture.md, each library stays in its place,
files stay short.
"""

import ast
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dynexit"

FLOORS = {
    "core": 0,
    "exits": 1,
    "objectives": 1,
    "calibration": 1,
    "backbones": 2,
    "data": 2,
    "decoding": 3,
    "training": 3,
    "analysis": 3,
    "methods": 4,
    "cli": 5,
}
PLACES = {
    "flax": "backbones",
    "orbax": "training",
    "wandb": "training",
    "tensorflow_datasets": "data",
    "matplotlib": "analysis",
    "diffrax": "exits",
}
LAZY = {"wandb", "tensorflow_datasets", "matplotlib", "diffrax"}
# What may hold a loop over blocks. Elsewhere below it a loop over something else is welcome
# (bisection, a sweep over exits).
NO_DEPTH_LOOPS = {"backbones", "methods", "training", "decoding"}
LOOPS = {"while_loop", "fori_loop", "scan"}
LONGEST = 600


class Import(NamedTuple):
    """One imported module: its dotted name, its line, and whether it is imported with the file that
    names it.
    """

    name: str
    line: int
    at_once: bool


def imports_of(source: str) -> list[Import]:
    """Every import, those inside functions and `if TYPE_CHECKING:` included; `from a import b`
    counts as `a.b`.
    """
    found = []

    def visit(node, at_once):
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found.extend(
                Import(f"{base}.{alias.name}", node.lineno, at_once) for alias in node.names
            )
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            visit(child, at_once and not inside and not typing_only)

    visit(ast.parse(source), True)
    return found


def area_of(module: str) -> str | None:
    """`exits` for `dynexit.engine.run`; None for what belongs to no floor."""
    parts = module.split(".")
    return parts[1] if parts[0] == "dynexit" and len(parts) > 1 and parts[1] in FLOORS else None


def faults_of(area: str, source: str) -> list[str]:
    """What the imports and loops of a file in `area` break, one sentence each."""
    found = []
    for name, line, at_once in imports_of(source):
        top, target = name.split(".")[0], area_of(name)
        if name.startswith("."):
            found.append(f"{line}: relative import {name}")
        if top == "dynexit" and target is None and not name.startswith("dynexit._lazy"):
            found.append(
                f"{line}: {name} goes by way of the package; import from the module that defines it"
            )
        if target not in (None, area) and FLOORS[target] >= FLOORS[area]:
            found.append(
                f"{line}: {area} (floor {FLOORS[area]}) imports {name} (floor {FLOORS[target]})"
            )
        if top in PLACES and PLACES[top] != area:
            found.append(f"{line}: {top} is imported in {PLACES[top]} alone")
        if top in LAZY and at_once:
            found.append(f"{line}: {top} is imported inside functions alone")
    if area in NO_DEPTH_LOOPS:
        for node in ast.walk(ast.parse(source)):
            called = node.func if isinstance(node, ast.Call) else None
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", None)
            if name in LOOPS:
                found.append(f"{node.lineno}: {name} in {area}; loops over depth live in exits")
    return found


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE)
name_of = lambda path: path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_house(path):
    area = path.relative_to(PACKAGE).parts[0]
    assert area in FLOORS, f"dynexit/{area} has no floor; add it to docs/architecture.md and here"
    assert faults_of(area, path.read_text()) == []


@pytest.mark.parametrize(
    "area, source, words",
    [
        (
            "core",
            "import dynexit.engine.run",
            "core (floor 0) imports dynexit.engine.run (floor 1)",
        ),
        (
            "exits",
            "from dynexit.calibration import choose",
            "exits (floor 1) imports dynexit.calibration.choose (floor 1)",
        ),
        (
            "core",
            "def f():\n    from dynexit import cli",
            "core (floor 0) imports dynexit.cli (floor 5)",
        ),
        (
            "core",
            "if TYPE_CHECKING:\n    from dynexit.data import digits",
            "core (floor 0) imports dynexit.data.vision.digits",
        ),
        ("cli", "import dynexit as dx", "goes by way of the package"),
        ("exits", "from . import run", "relative import"),
        ("methods", "import flax.linen as nn", "flax is imported in backbones alone"),
        ("cli", "def f():\n    import orbax.checkpoint", "orbax is imported in training alone"),
        ("training", "import wandb", "wandb is imported inside functions alone"),
        (
            "data",
            "class A:\n    import tensorflow_datasets",
            "tensorflow_datasets is imported inside functions alone",
        ),
        (
            "analysis",
            "try:\n    from matplotlib import pyplot\nfinally: pass",
            "matplotlib is imported inside functions",
        ),
        ("backbones", "jax.lax.scan(f, x, y)", "scan in backbones; loops over depth live in exits"),
    ],
)
def test_what_is_refused(area, source, words):
    (fault,) = faults_of(area, source)
    assert words in fault


@pytest.mark.parametrize(
    "area, source",
    [
        ("cli", "from dynexit.core import types"),
        ("exits", "from dynexit.engine.run import run_until"),
        ("exits", "from dynexit._lazy import attach"),
        ("training", "def f():\n    import wandb"),
        ("data", "if TYPE_CHECKING:\n    import tensorflow_datasets"),
        ("calibration", "lax.scan(f, x, y)"),
    ],
)
def test_what_is_allowed(area, source):
    assert faults_of(area, source) == []


PROGRAMS = sorted(
    p
    for folder in ("dynexit", "tests", "experiments")
    for p in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in p.parts
)


def test_no_file_is_too_long():
    lengths = {p.relative_to(ROOT).as_posix(): len(p.read_text().splitlines()) for p in PROGRAMS}
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}


def test_test_files_have_names_of_their_own():
    names = [p.name for p in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_every_area_is_a_package_with_its_names_listed():
    for area in sorted({p.relative_to(PACKAGE).parts[0] for p in FILES}):
        source = (PACKAGE / area / "__init__.py").read_text()
        assert ast.get_docstring(ast.parse(source)), f"dynexit/{area}/__init__.py needs a docstring"
        if len(source.splitlines()) > 1:
            assert "__all__" in source, f"dynexit/{area}/__init__.py lists no names in __all__"
