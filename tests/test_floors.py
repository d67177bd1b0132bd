"""The structure of the package: imports go down the floors, libraries stay in place, files stay short."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "dynexit"

# Lowest first: a package imports those before it, and itself. docs/architecture.md has the same list.
ORDER = (
    "core",
    "criteria",
    "objectives",
    "engine",
    "transforms",
    "solvers",
    "calibration",
    "layers",
    "models",
    "data",
    "decoding",
    "training",
    "evaluation",
    "bench",
    "methods",
    "runs",
    "cli",
)
FLOORS = {package: floor for floor, package in enumerate(ORDER)}
PLACES = {
    "flax": {"layers", "models", "bench"},
    "equinox": {"models"},
    "safetensors": {"models", "training"},
    "wandb": {"training"},
    "tensorflow_datasets": {"data"},
    "matplotlib": {"evaluation"},
    "diffrax": {"solvers"},
    "torch": {"bench"},
    "tokenizers": {"data"},
    "gguf": {"models"},
    "starlette": {"runs"},
    "uvicorn": {"runs"},
}
LAZY = PLACES.keys() - {"flax"}
LOOPS = {"while_loop", "fori_loop", "scan", "nn.scan", "nn.while_loop"}
LONGEST = 600
MOST_FILES = 15  # modules in one folder, `__init__.py` not counted


class Import(NamedTuple):
    """One imported module: its dotted name, its line, and whether it is imported with its file."""

    name: str
    line: int
    at_once: bool


def imports_of(source: str) -> list[Import]:
    """Every import, those inside functions and `if TYPE_CHECKING:` included."""
    found = []

    def visit(node, at_once):
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names = [f"{base}.{alias.name}" for alias in node.names]
            found.extend(Import(name, node.lineno, at_once) for name in names)
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            visit(child, at_once and not inside and not typing_only)

    visit(ast.parse(source), True)
    return found


def package_of(module: str) -> str | None:
    """`engine` for `dynexit.engine.run`; None for what belongs to no floor."""
    parts = module.split(".")
    known = parts[0] == "dynexit" and len(parts) > 1 and parts[1] in FLOORS
    return parts[1] if known else None


def violations(package: str, source: str) -> list[str]:
    """What the imports and loops of a file in `package` break, one sentence each."""
    found = []
    for name, line, at_once in imports_of(source):
        top, target = name.split(".")[0], package_of(name)
        if name.startswith("."):
            found.append(f"{line}: relative import {name}")
        if top == "dynexit" and target is None and not name.startswith("dynexit._lazy"):
            found.append(f"{line}: {name} must be imported from the module that defines it")
        if target not in (None, package) and FLOORS[target] >= FLOORS[package]:
            found.append(f"{line}: {package} imports {name}, and {target} is above {package}")
        if top in PLACES and package not in PLACES[top]:
            found.append(f"{line}: {top} is imported only in {', '.join(sorted(PLACES[top]))}")
        if top in LAZY and at_once:
            found.append(f"{line}: {top} is imported only inside functions")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and any("Module" in ast.unparse(b) for b in node.bases):
            found += [
                f"{call.lineno}: {ast.unparse(call.func)} in a Module; the engine runs the loop over depth"
                for call in ast.walk(node)
                if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] in LOOPS
            ]
    return found


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE)
name_of = lambda path: path.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_and_loops(path):
    package = path.relative_to(PACKAGE).parts[0]
    assert package in FLOORS, f"dynexit/{package} has no floor; docs/architecture.md lists them"
    assert violations(package, path.read_text()) == []


@pytest.mark.parametrize(
    "package, source, words",
    [
        ("core", "import dynexit.engine.run", "core imports dynexit.engine.run"),
        ("engine", "from dynexit.calibration import choose", "calibration is above engine"),
        ("core", "def f():\n    from dynexit import cli", "core imports dynexit.cli"),
        ("core", "if TYPE_CHECKING:\n    from dynexit.data import x", "data is above core"),
        ("cli", "import dynexit as dx", "from the module that defines it"),
        ("engine", "from . import run", "relative import"),
        ("methods", "import flax.linen as nn", "flax is imported only in bench, layers, models"),
        ("cli", "def f():\n    import wandb", "wandb is imported only in training"),
        ("training", "import wandb", "wandb is imported only inside functions"),
        ("data", "class A:\n    import tensorflow_datasets", "only inside functions"),
        (
            "evaluation",
            "try:\n    from matplotlib import x\nfinally: pass",
            "only inside functions",
        ),
        ("models", "class A(nn.Module):\n    def f(self): lax.scan(f, x, y)", "in a Module"),
    ],
)
def test_what_is_refused(package, source, words):
    (violation,) = violations(package, source)
    assert words in violation


@pytest.mark.parametrize(
    "package, source",
    [
        ("cli", "from dynexit.core import types"),
        ("engine", "from dynexit.engine.run import run_until"),
        ("engine", "from dynexit._lazy import attach"),
        ("training", "def f():\n    import wandb"),
        ("data", "if TYPE_CHECKING:\n    import tensorflow_datasets"),
        ("models", "lax.scan(f, x, y)"),
    ],
)
def test_what_is_allowed(package, source):
    assert violations(package, source) == []


PROGRAMS = sorted(
    p
    for folder in ("dynexit", "tests", "experiments")
    for p in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in p.parts
)


def test_no_file_is_too_long():
    lengths = {p.relative_to(ROOT).as_posix(): len(p.read_text().splitlines()) for p in PROGRAMS}
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}


def test_no_folder_holds_too_many_files():
    folders = {p.parent for p in FILES}
    counts = {f: sum(p.name != "__init__.py" for p in f.glob("*.py")) for f in folders}
    assert {name_of(f): n for f, n in counts.items() if n > MOST_FILES} == {}


def test_test_files_have_names_of_their_own():
    names = [p.name for p in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("folder", sorted({p.parent for p in FILES}), ids=name_of)
def test_every_package_has_a_docstring(folder):
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))


def test_the_list_of_slow_tests_names_tests(idle_lines):
    """Each line, where all tests are collected; the files and functions, everywhere."""
    lines = (ROOT / "tests" / "slow.txt").read_text().splitlines()
    assert lines == sorted(set(lines)) and idle_lines == []
    for line in lines:
        file, _, test = line.partition("::")
        name = test.partition("[")[0].replace("*", ".*")
        source = (ROOT / file).read_text()
        assert re.search(rf"^(def {name}\(|{name} = )", source, re.MULTILINE), line
