"""Writes `docs/api/`: one page per namespace, one entry per public name.

The names come from the lists in the packages' `__init__.py` (`dynexit/_lazy.py` reads the same
lists), so a new public name appears without a change here. An entry documents the object at its
public path, `dynexit.criteria.entropy_below`, wherever it is defined.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from docstrings import to_rst

import dynexit

FOLDER = "api"


def namespaces() -> list[str]:
    """Packages that list public names, `dynexit` first."""
    found = [m.name for m in pkgutil.walk_packages(dynexit.__path__, "dynexit.") if m.ispkg]
    listed = lambda name: getattr(importlib.import_module(name), "__all__", [])
    return ["dynexit", *sorted(name for name in found if listed(name))]


def pages() -> dict[str, str]:
    """Name of a page -> its text, as reStructuredText."""
    names = namespaces()
    return {"index": _index(names)} | {name: _page(name) for name in names}


def public_names(namespace: str) -> list[str]:
    """Public names of a namespace that are not namespaces with a page of their own."""
    module = importlib.import_module(namespace)
    return [name for name in module.__all__ if not _has_page(getattr(module, name))]


def members(module: ModuleType) -> list[str]:
    """Public functions and classes that a module defines, in the order of its source."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return list(listed)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    ]


def _has_page(value: Any) -> bool:
    return inspect.ismodule(value) and hasattr(value, "__path__")


def _index(names: list[str]) -> str:
    rows = [
        f"* - :doc:`{name} <{name}>`\n  - {_summary(importlib.import_module(name))}"
        for name in names
    ]
    return "\n".join(
        [
            *_title("API reference"),
            "``import dynexit as dx`` loads nothing; a name loads its module when first used.",
            "",
            *_list_table(rows),
            ".. toctree::",
            "   :hidden:",
            "",
            *(f"   {name}" for name in names),
            "",
        ]
    )


def _page(namespace: str) -> str:
    module = importlib.import_module(namespace)
    lines = [*_title(namespace), f".. py:module:: {namespace}", ""]
    lines += [*to_rst((module.__doc__ or "").splitlines()), ""]
    inner = [name for name in module.__all__ if _has_page(getattr(module, name))]
    names = public_names(namespace)
    rows = [
        *(
            _row(f":doc:`{name} <{namespace}.{name}>`", getattr(module, name))
            for name in inner
            if hasattr(getattr(module, name), "__all__")
        ),
        *(_row(f":py:obj:`{name} <{namespace}.{name}>`", getattr(module, name)) for name in names),
    ]
    lines += _list_table(rows)
    for name in inner:
        if not hasattr(getattr(module, name), "__all__"):
            lines += [f".. py:module:: {namespace}.{name}", ""]
    for name in names:
        lines += _entry(namespace, name, getattr(module, name))
    return "\n".join(lines) + "\n"


def _entry(namespace: str, name: str, value: Any) -> Iterator[str]:
    path = f"{namespace}.{name}"
    if namespace != "dynexit" and name in dynexit.__all__ and getattr(dynexit, name) is value:
        kind = "class" if inspect.isclass(value) else "function"
        yield from (f".. py:{kind}:: {name}", f"   :module: {namespace}", "")
        yield from (f"   The same as :py:obj:`dynexit.{name}`.", "")
    elif inspect.ismodule(value):
        yield from (f".. py:module:: {path}", "", *_title(name, "-"))
        yield from (*to_rst((value.__doc__ or "").splitlines()), "")
        for member in members(value):
            yield from _auto(f"{path}.{member}", getattr(value, member))
    else:
        yield from _auto(path, value)


def _auto(path: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        yield f".. autoclass:: {path}"
        if not hasattr(value, "_fields"):  # fields of a named tuple are in its docstring
            yield "   :members:"
    elif inspect.isfunction(value):
        yield f".. autofunction:: {path}"
    else:
        yield f".. autodata:: {path}"
    yield ""


def _summary(value: Any) -> str:
    """The first sentence of a docstring, as one line of reStructuredText."""
    described = inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value)
    text = (inspect.getdoc(value) or "") if described else ""
    first = " ".join(text.split("\n\n")[0].split())
    return " ".join(to_rst([first]))


def _row(link: str, value: Any) -> str:
    return f"* - {link}\n  - {_summary(value)}"


def _list_table(rows: list[str]) -> list[str]:
    body = [f"   {line}" for row in rows for line in row.splitlines()]
    return [".. list-table::", "   :widths: 30 70", "", *body, ""]


def _title(text: str, mark: str = "=") -> list[str]:
    return [text, mark * len(text), ""]


def _write(app: Any, config: Any) -> None:
    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(exist_ok=True)
    written = {f"{name}.rst": text for name, text in pages().items()}
    for path in folder.iterdir():
        if path.name not in written:
            path.unlink()
    for name, text in written.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:  # an equal page is not built again
            path.write_text(text)


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = to_rst(lines)


def _skip(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out fields whose value is a function of another library, and what it documents."""
    other = not (getattr(obj, "__module__", None) or "dynexit").startswith("dynexit")
    return True if callable(obj) and other else None


def _readable(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str
) -> tuple[str, str] | None:
    """Defaults that have no literal, `<function exact at 0x7f>`, as their name."""
    if signature is None:
        return None
    plain = signature.replace("<locals>.", "")
    named = re.sub(r"<(?:function|class|built-in function) '?([\w.]+)'?[^<>]*>", r"\1", plain)
    return re.sub(r"<[^<>]*>", "...", named), returns


def setup(app: Any) -> dict:
    """Called by Sphinx."""
    app.connect("config-inited", _write)
    app.connect("autodoc-process-signature", _readable)
    app.connect("autodoc-skip-member", _skip)
    # before napoleon, which has the priority 500
    app.connect("autodoc-process-docstring", _process, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
