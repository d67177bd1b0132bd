"""Settings from a command line; invalid options are reported together, before JAX is loaded."""

import contextlib
import dataclasses
import difflib
import enum
import io
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from dynexit.core.settings import validate
from dynexit.runs.experiment_file import SettingsError

Options: TypeAlias = dict[str, Any]  # values of flags, by name


class Flag(NamedTuple):
    """An option of a command that is not a setting of the experiment."""

    name: str
    type: Any
    default: Any
    help: str


def parse(
    argv: Sequence[str], prog: str, flags: Sequence[Flag], settings: Any = None, summary: str = ""
) -> tuple[Options, Any]:
    """Reads `--name value` options into the values of `flags` and into `settings`.

    Args:
      argv: the words after the command's own positional ones.
      prog: what usage and messages call the command.
      flags: the command's own options.
      settings: a frozen dataclass, possibly nested, whose values are the defaults; None where the
        command takes none.
      summary: what `--help` says first.

    Returns:
      Values of the flags by name, and the settings with the overrides applied.

    Raises:
      SettingsError: unknown names, wrong types and invalid values, all in one message.
      SystemExit: `--help` was printed.
    """
    values, given, found = read(argv, prog, flags, settings, summary)
    if given is not None:
        found += validate(given)
    refuse(found, prog)
    return values, given


def read(
    argv: Sequence[str], prog: str, flags: Sequence[Flag], settings: Any = None, summary: str = ""
) -> tuple[Options, Any, list[str]]:
    """Reads options as `parse` does; ranges of settings are not checked.

    Returns:
      Values of the flags by name, the settings with the overrides applied, and a sentence for each
      unknown name and wrong type, whose option is not applied.
    """
    fields = [("settings", _unprefixed(settings), settings)] if settings is not None else []
    fields += [(flag.name, _with_help(flag), flag.default) for flag in flags]
    options = dataclasses.make_dataclass("options", fields, frozen=True)
    if any(word in ("-h", "--help") for word in argv):
        _tyro(options, ["--help"], prog, summary)
    known = {flag.name: flag.type for flag in flags} | (
        dict(leaves(settings)) if settings is not None else {}
    )
    stray, groups = grouped(argv)
    found = [f"unexpected argument {word!r}; options are written --name value" for word in stray]
    good: list[str] = []
    for group in groups:
        sentence = _fault_of(group, known, options, prog)
        if sentence:
            found.append(sentence)
        else:
            good += group
    parsed = _tyro(options, good, prog, summary)
    values = {flag.name: getattr(parsed, flag.name) for flag in flags}
    return values, parsed.settings if settings is not None else None, found


def refuse(found: Sequence[str], prog: str) -> None:
    """Refuses a command whose options are invalid.

    Args:
      found: a sentence for each; nothing is done where there is none.
      prog: what messages call the command.

    Raises:
      SettingsError: all sentences in one message.
    """
    if found:
        lines = "\n".join(f"  {sentence}" for sentence in found)
        raise SettingsError(
            f"{len(found)} invalid setting{'s' if len(found) > 1 else ''}:\n{lines}\n"
            f"`{prog} --help` shows all settings."
        )


def leaves(settings: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and type of every setting of a dataclass instance."""
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}", hints[field.name]


def _unprefixed(settings: Any) -> Any:
    import tyro

    return Annotated[type(settings), tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


def _with_help(flag: Flag) -> Any:
    import tyro

    return Annotated[flag.type, tyro.conf.arg(help=flag.help)]


def _tyro(options: type, argv: Sequence[str], prog: str, summary: str = "") -> Any:
    import tyro

    return tyro.cli(
        options,
        args=list(argv),
        prog=prog,
        description=summary,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def filled(argv: Sequence[str], option: str, value: str) -> list[str]:
    """The words, with a value behind an option that has none.

    Example:
      >>> filled(["--profile", "--seed", "1"], "--profile", "5")
      ['--profile', '5', '--seed', '1']
    """
    words = list(argv)
    for k in [k for k, word in enumerate(words) if word == option][::-1]:
        if k + 1 == len(words) or words[k + 1].startswith("--"):
            words.insert(k + 1, value)
    return words


def grouped(argv: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Words before the first option, and one list per `--option` with the values behind it."""
    stray, groups = [], []
    for word in argv:
        if word.startswith("--"):
            groups.append(word.split("=", 1))
        elif groups:
            groups[-1].append(word)
        else:
            stray.append(word)
    return stray, groups


def _fault_of(group: Sequence[str], known: dict[str, Any], options: type, prog: str) -> str | None:
    name = group[0].removeprefix("--").replace("-", "_")
    if name not in known:
        near = (
            difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            or [k for k in known if k.endswith(f".{name}")][:1]
        )
        return f"{group[0]} is not a setting" + (
            f"; did you mean --{near[0].replace('_', '-')}?" if near else ""
        )
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            _tyro(options, group, prog)
        except SystemExit:
            return f"{group[0]} takes {_words(known[name])}, got {' '.join(group[1:]) or 'nothing'}"
    return None


def _words(hint: Any) -> str:
    """A type in words: `int`, `float or None`, `one of cosine, linear`."""
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(hint.__members__)
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(map(_words, typing.get_args(hint)))
    if hint is type(None):
        return "None"
    return getattr(hint, "__name__", str(hint)) if typing.get_origin(hint) is None else str(hint)
