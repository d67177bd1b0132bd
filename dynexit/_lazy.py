"""Lazy packages (PEP 562): `import dynexit` costs milliseconds, and each name loads its module when
first used.

The imports under `if TYPE_CHECKING:` in a package's `__init__.py` are the only list of its public
names. Type checkers read it as it stands, and `attach` reads it to find the module of each name.
"""

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def attach(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Sets a package's `__all__` and returns its `__getattr__` and `__dir__`.

    Args:
      package: `__name__` of a package whose `if TYPE_CHECKING:` block imports every public name as
        itself.

    Returns:
      The two functions. Where a function has the name of its module (`replay` in `replay.py`), the
      package has the function, whichever of the two was imported first.
    """
    module = sys.modules[package]
    names = declared(Path(str(module.__file__)).read_text(encoding="utf-8"))

    class Package(ModuleType):
        def __setattr__(self, name: str, value: Any) -> None:
            # Importing a sub-module sets it as an attribute of its package, which would hide the
            # function.
            if not (
                isinstance(value, ModuleType) and name in names and not _is_module(*names[name])
            ):
                super().__setattr__(name, value)

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        source, original = names[name]
        if source == package or _is_module(source, original):
            return importlib.import_module(f"{source}.{original}")
        return getattr(importlib.import_module(source), original)

    module.__class__ = Package
    module.__dict__["__all__"] = sorted(names)
    return __getattr__, lambda: sorted(names)


def declared(source: str) -> dict[str, tuple[str, str]]:
    """Public name -> (module, name there), from the `if TYPE_CHECKING:` block of a package's
    source.
    """
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                if isinstance(line, ast.ImportFrom) and line.module:
                    found |= {
                        alias.asname or alias.name: (line.module, alias.name)
                        for alias in line.names
                    }
    return found


def _is_module(source: str, name: str) -> bool:
    """Whether `from source import name` gives a module: source is then a package that does not
    define the name.
    """
    folder = Path(__file__).parent.joinpath(*source.split(".")[1:])
    return folder.is_dir() and ((folder / f"{name}.py").exists() or (folder / name).is_dir())
