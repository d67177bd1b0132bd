"""The words of a command that are not options."""

from collections.abc import Sequence

from dynexit.runs.experiment_file import SettingsError


def split(
    argv: Sequence[str], usage: str, least: int = 1, most: int | None = 1
) -> tuple[list[str], list[str]]:
    """Positional words, which come first, and the rest.

    Raises:
      SettingsError: too few or too many.
    """
    count = next((k for k, word in enumerate(argv) if word.startswith("-")), len(argv))
    words, rest = list(argv[:count]), list(argv[count:])
    asks_help = any(word in ("-h", "--help") for word in rest)
    if most is not None and len(words) > most:
        raise SettingsError(
            f"unexpected argument {words[most]!r}; options are written --name value\nusage: {usage}"
        )
    if len(words) < least and not asks_help:
        raise SettingsError(f"usage: {usage}")
    return words, rest
