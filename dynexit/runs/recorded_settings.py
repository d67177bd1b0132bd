"""Settings as JSON, and back to their types."""

import dataclasses
import enum
import json
import pathlib
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

from dynexit.core.settings import in_words, validate
from dynexit.runs.experiment_file import SettingsError


def to_dict(settings: Any) -> dict[str, Any]:
    """A tree of settings as nested dicts that JSON can hold.

    Paths and members of an `Enum` become strings, tuples become lists.

    Raises:
      SettingsError: settings of other types, all of them, which JSON cannot hold or give back.
    """
    found = [
        f"{name} must be of a type that settings.json can hold, got {value!r} ({in_words(hint)})"
        for name, value, hint in _values(settings)
        if not _survives(value, hint)
    ]
    if found:
        raise SettingsError("; ".join(found))
    return _encoded(settings)


def from_dict(
    default: Any,
    values: dict[str, Any],
    where: str,
    log: Callable[[str], None],
    data: bool = True,
) -> Any:
    """The inverse of `to_dict`: an instance of `default`'s class, validated.

    Args:
      default: an instance of the class, for the nested classes and for settings that are newer than
        `values`.
      values: nested dicts.
      where: the file they come from, for messages.
      log: gets a line where a setting is not in `values`, and its default is taken.
      data: whether the field `data` is validated, which may name files.

    Raises:
      SettingsError: a setting that the class does not have, or a value that it refuses.
    """
    settings = _instance(default, values, where, log)
    checked = settings if data else getattr(settings, "model", None)
    if found := validate(checked) if dataclasses.is_dataclass(checked) else []:
        raise SettingsError(f"{where} holds invalid settings: {'; '.join(found)}")
    return settings


def _instance(default: Any, values: Any, where: str, log: Callable[[str], None]) -> Any:
    kind, hints = type(default), typing.get_type_hints(type(default))
    names = {field.name for field in dataclasses.fields(default) if field.init}
    if not isinstance(values, dict) or set(values) - names:
        got = set(values) if isinstance(values, dict) else set()
        raise SettingsError(
            f"{where} does not fit the experiment's {kind.__name__}: "
            f"missing {sorted(names - got)}, unknown {sorted(got - names)}"
        )
    for name in sorted(names - set(values)):
        log(
            f"{where} is older than {kind.__name__}.{name}: its default is taken, "
            f"{getattr(default, name)!r}"
        )
    changed = {}
    for name, value in values.items():
        old = getattr(default, name)
        try:
            changed[name] = (
                _instance(old, value, where, log)
                if dataclasses.is_dataclass(old)
                else _decoded(value, hints[name])
            )
        except (TypeError, ValueError, KeyError) as error:
            if isinstance(error, SettingsError):
                raise
            raise SettingsError(
                f"{where}: {kind.__name__}.{name} must be {in_words(hints[name])}, got {value!r}"
            ) from error
    return dataclasses.replace(default, **changed)


def _values(settings: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted name, value and type of every setting."""
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from _values(value, f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}", value, hints[field.name]


def _survives(value: Any, hint: Any) -> bool:
    try:
        again = _decoded(json.loads(json.dumps(_encoded(value))), hint)
    except (TypeError, ValueError, KeyError):
        return False
    numeric = type(again) in (int, float) and type(value) in (int, float)
    return (numeric or type(again) is type(value)) and again == value


def _encoded(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if isinstance(value, (tuple, list)):
        return [_encoded(each) for each in value]
    if isinstance(value, dict):
        return {name: _encoded(each) for name, each in value.items()}
    if dataclasses.is_dataclass(value):
        return {
            field.name: _encoded(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    return value


def _decoded(value: Any, hint: Any) -> Any:
    """A value of JSON in the type of a setting.

    Raises:
      TypeError, ValueError, KeyError: it is of another type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(value, arguments)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint[value]
    if isinstance(hint, type) and issubclass(hint, pathlib.PurePath):
        return hint(value)
    if hint is tuple or hint is list or origin in (tuple, list):
        return _sequence(value, origin or hint, arguments)
    if isinstance(value, list):
        return tuple(value)
    if hint is type(None) and value is not None:
        raise TypeError("not None")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise TypeError(f"not {hint}")
    return value


def _first_that_fits(value: Any, hints: tuple[Any, ...]) -> Any:
    for hint in [each for each in hints if (value is None) is (each is type(None))]:
        try:
            return _decoded(value, hint)
        except (TypeError, ValueError, KeyError):
            continue
    raise TypeError("of none of the types")


def _sequence(value: Any, kind: type, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(value, list):
        raise TypeError("not a list")
    hints = [Any] * len(value)
    if arguments:
        variadic = kind is list or Ellipsis in arguments
        hints = [arguments[0]] * len(value) if variadic else list(arguments)
    return kind(_decoded(each, hint) for each, hint in zip(value, hints, strict=True))
