"""Experiment files: loading them, the files of their folder that they import, and their hash."""

import ast
import difflib
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from dynexit.core.settings import Settings

if TYPE_CHECKING:
    import dynexit.core.types

Experiment: TypeAlias = "dynexit.core.types.Experiment"  # a name alone: it would load JAX


class SettingsError(ValueError):
    """Invalid user input; `str()` is the whole message. The command exits with 2."""


class ExperimentFile(NamedTuple):
    """An experiment file that was loaded.

    Attributes:
      path: its path.
      name: the file's name without `.py`.
      sha256: of the file and of the files of its folder that it imports, see `digest`.
      summary: its docstring.
      settings: `Settings()`, its defaults.
      smoke: `SMOKE`, the same job in seconds.
      build: `build(settings) -> Experiment`; where the file has none, `Settings.build`.
      own: whether the file has a `build` of its own.
    """

    path: Path
    name: str
    sha256: str
    summary: str
    settings: Any
    smoke: Any
    build: Callable[[Any], Experiment]
    own: bool = True


def load(path: str | Path) -> ExperimentFile:
    """Imports an experiment file, which may import other files of its folder.

    Raises:
      SettingsError: there is no such file, it is no Python, it imports what is not there, or it
        lacks `Settings` or `SMOKE`, or a `build`.
    """
    path = Path(path)
    if not path.is_file():
        raise SettingsError(f"no experiment file at {path}{_nearby(path)}")
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SettingsError(f"{path} is not a Python file; an experiment file ends in .py")
    sha256, folder = digest(path), path.resolve().parent
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where the text of its classes is looked up, for --help
    import_from(folder)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise SettingsError(f"{path} cannot be imported: {error}") from error
    missing = [name for name in ("Settings", "SMOKE") if not hasattr(module, name)]
    if missing:
        raise SettingsError(
            f"{path} is not an experiment file: it defines no {', no '.join(missing)} "
            "(see experiments/template.py)"
        )
    build = getattr(module, "build", None) or getattr(module.Settings, "build", None)
    if build is None:
        raise SettingsError(
            f"{path} is not an experiment file: it defines no build, and its Settings is no "
            "dx.Settings"
        )

    def built(settings: Any) -> Experiment:
        import_from(folder)  # another experiment may have been loaded in between
        return build(settings)

    summary = module.__doc__ or ""
    own = build is not Settings.build
    given = module.Settings(), module.SMOKE, built, own
    return ExperimentFile(path, path.stem, sha256, summary, *given)


def digest(path: Path) -> str:
    """The SHA-256 of a file and of the files of its folder that it imports; nothing is executed.

    For a file that imports no neighbour it is the SHA-256 of its bytes.

    Raises:
      SettingsError: the file or a neighbour is no Python.
    """
    folder = path.resolve().parent
    found = hashlib.sha256(path.read_bytes())
    for neighbour in sorted(neighbours(path)):
        name = neighbour.relative_to(folder).as_posix()
        found.update(f"\0{name}\0".encode() + neighbour.read_bytes())
    return found.hexdigest()


def neighbours(path: Path) -> set[Path]:
    """The Python files of a file's folder that it imports, directly or through one another.

    Of a package all files count. Imports inside functions count; those by `importlib` are not seen.
    """
    folder, found, todo = path.resolve().parent, set(), [path.resolve()]
    while todo:
        for name in _imported(todo.pop()):
            for each in _files_of(folder, name):
                if each not in found and each != path.resolve():
                    found.add(each)
                    todo.append(each)
    return found


def _imported(path: Path) -> Iterator[str]:
    """The top-level names of all modules that a file imports."""
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise SettingsError(f"{path}{line} is not Python: {error}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def _files_of(folder: Path, name: str) -> Iterator[Path]:
    if name == "dynexit":  # its version is recorded
        return
    if (folder / f"{name}.py").is_file():
        yield folder / f"{name}.py"
    elif (folder / name).is_dir():
        yield from (folder / name).rglob("*.py")


_active: list[Path] = []  # the folder that imports come from, at most one
_neighbours: dict[Path, dict[str, ModuleType]] = {}  # modules of each such folder


def import_from(folder: Path) -> None:
    """Lets imports find the files of a folder first, as they do for a script of that folder.

    One folder at a time: modules of the one before are put aside, so that two experiments may have
    neighbours of the same name.
    """
    if _active == [folder]:
        return
    if _active:
        before = _active.pop()
        mine = {name: module for name, module in sys.modules.items() if _is_below(module, before)}
        _neighbours[before] = mine
        for name in mine:
            del sys.modules[name]
        if str(before) in sys.path:
            sys.path.remove(str(before))
    sys.path.insert(0, str(folder))
    sys.modules.update(_neighbours.pop(folder, {}))
    importlib.invalidate_caches()
    _active.append(folder)


def _is_below(module: Any, folder: Path) -> bool:
    """Whether a module was imported from a folder by the name that it has there."""
    file, name = getattr(module, "__file__", None), getattr(module, "__name__", "")
    top = str(name).split(".")[0]
    if not file or top in ("dynexit", "__main__", "conftest"):
        return False
    place = Path(file)
    return place == folder / f"{top}.py" or place.is_relative_to(folder / top)


def _nearby(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("experiments")
    names = [p.name for p in folder.glob("*.py")]
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; the nearest is {folder / near[0]}" if near else ""
