"""Experiment files, and their settings as JSON."""

import dataclasses
import difflib
import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class SettingsError(ValueError):
    """What the user wrote cannot be used; `str()` is the whole message. The command exits with 2."""


class ExperimentFile(NamedTuple):
    """An experiment file that was loaded.

    Attributes:
      path: where it lies.
      name: the file's name without `.py`.
      sha256: of its bytes.
      summary: its docstring.
      settings: `Settings()`, its defaults.
      smoke: `SMOKE`, the same job in seconds.
      build: `build(settings) -> Experiment`; where the file has none, `Settings.build`.
    """

    path: Path
    name: str
    sha256: str
    summary: str
    settings: Any
    smoke: Any
    build: Callable[[Any], Any]


def load(path: str | Path) -> ExperimentFile:
    """Imports an experiment file.

    Raises:
      SettingsError: there is no such file, or it lacks `Settings` or `SMOKE`, or a `build`.
    """
    path = Path(path)
    if not path.is_file():
        raise SettingsError(f"no experiment file at {path}{_nearby(path)}")
    spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SettingsError(f"{path} is not a Python file; an experiment file ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where the text of its classes is looked up, for --help
    spec.loader.exec_module(module)
    missing = [name for name in ("Settings", "SMOKE") if not hasattr(module, name)]
    if missing:
        raise SettingsError(
            f"{path} is not an experiment file: it defines no {', no '.join(missing)} (see experiments/template.py)"
        )
    build = getattr(module, "build", None) or getattr(module.Settings, "build", None)
    if build is None:
        raise SettingsError(
            f"{path} is not an experiment file: it defines no build, and its Settings is no dx.Settings"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ExperimentFile(
        path, path.stem, digest, module.__doc__ or "", module.Settings(), module.SMOKE, build
    )


def _nearby(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("experiments")
    names = [p.name for p in folder.glob("*.py")]
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; the nearest is {folder / near[0]}" if near else ""


def to_dict(settings: Any) -> dict:
    """A tree of settings as nested dicts that JSON can hold."""
    return dataclasses.asdict(settings)


def from_dict(default: Any, values: dict, where: str, log: Callable[[str], None]) -> Any:
    """The inverse of `to_dict`: an instance of `default`'s class.

    Args:
      default: an instance of the class, for the nested classes and for settings that are newer than
        `values`.
      values: nested dicts.
      where: the file they come from, for messages.
      log: gets a line where a setting is not in `values`, and its default is taken.

    Raises:
      SettingsError: a setting that the class does not have.
    """
    names = {field.name for field in dataclasses.fields(default)}
    if not isinstance(values, dict) or set(values) - names:
        got = set(values) if isinstance(values, dict) else set()
        raise SettingsError(
            f"{where} does not fit the experiment's {type(default).__name__}: missing {sorted(names - got)}, "
            f"unknown {sorted(got - names)}"
        )
    for name in sorted(names - set(values)):
        log(
            f"{where} is older than {type(default).__name__}.{name}: its default is taken, {getattr(default, name)!r}"
        )
    changed = {}
    for name, new in values.items():
        old = getattr(default, name)
        changed[name] = (
            from_dict(old, new, where, log)
            if dataclasses.is_dataclass(old)
            else tuple(new)
            if isinstance(new, list)
            else new
        )
    return dataclasses.replace(default, **changed)
