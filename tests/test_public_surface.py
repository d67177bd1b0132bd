"""Every public name exists, is documented, and is known to type checkers; the examples in the
docstrings run.
"""

import ast
import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import dynexit

MODULES = sorted(m.name for m in pkgutil.walk_packages(dynexit.__path__, "dynexit."))
PACKAGES = [
    "dynexit",
    *sorted(m.name for m in pkgutil.walk_packages(dynexit.__path__, "dynexit.") if m.ispkg),
]


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_exist_and_are_documented(package):
    module = importlib.import_module(package)
    assert module.__doc__
    names = list(getattr(module, "__all__", []))
    assert names == sorted(set(names))
    for name in names:
        value = getattr(module, name)
        if callable(value) or inspect.ismodule(value):
            assert inspect.getdoc(value), f"{package}.{name} has no docstring"
            if inspect.isclass(value):  # a NamedTuple without one has a docstring made by Python
                assert not value.__doc__.startswith(f"{value.__name__}("), (
                    f"{package}.{name} has no docstring"
                )
    assert set(names) - {"__version__"} <= set(dir(module)) | set(vars(module))


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_the_lazy_names(package):
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__).read_text())
    checked = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    names = [
        alias.asname or alias.name for node in checked for line in node.body for alias in line.names
    ]
    assert sorted(names) == sorted(set(getattr(module, "__all__", [])) - {"__version__"})
    if names:
        assert sorted(dir(module)) == sorted(names), (
            "the names given to attach() differ from those under TYPE_CHECKING"
        )


@pytest.mark.parametrize("name", MODULES)
def test_modules_and_their_public_functions_are_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    own = [
        v
        for k, v in vars(module).items()
        if not k.startswith("_") and getattr(v, "__module__", None) == name
    ]
    undocumented = [
        v.__qualname__
        for v in own
        if (inspect.isfunction(v) or inspect.isclass(v)) and not v.__doc__
    ]
    assert undocumented == []


@pytest.mark.typed
@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    failed, _ = doctest.testmod(
        importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    found = [
        t for name in MODULES for t in finder.find(importlib.import_module(name)) if t.examples
    ]
    assert len(found) > 30
