"""Lazy packages (PEP 562): `import dynexit` costs milliseconds, and each name loads its module when first used."""

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


def attach(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns a package's `__getattr__` and `__dir__`, given name -> module that defines it.

    A module of `""` says that the name is itself a sub-module of the package. Where a function has the name of its module
    (`dynexit.replay` in `replay.py`), the package gives the function, whoever imported the module first.
    """

    class Package(ModuleType):
        def __setattr__(self, name: str, value: Any) -> None:
            # Importing a sub-module sets it as an attribute of its package, and would hide the function.
            if not (isinstance(value, ModuleType) and names.get(name)):
                super().__setattr__(name, value)

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if names[name] == "":
            return importlib.import_module(f"{package}.{name}")
        return getattr(importlib.import_module(f"{package}.{names[name]}"), name)

    sys.modules[package].__class__ = Package
    return __getattr__, lambda: sorted(names)
