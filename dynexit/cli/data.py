"""`dynexit data prepare NAME`: writes a data set to disk, once."""

import difflib
from collections.abc import Sequence

from dynexit.cli.options import Flag, parse
from dynexit.cli.positional import split
from dynexit.runs.experiment_file import SettingsError

USAGE = "dynexit data prepare NAME [--raw FOLDER]"


def data(argv: Sequence[str]) -> int:
    """Prepares a data set and prints its folder."""
    words, rest = split(argv, USAGE, least=2, most=2)
    raw = Flag("raw", str | None, None, "folder that holds the raw files already")
    options, _ = parse(rest, "dynexit data prepare NAME", (raw,))
    if words[0] != "prepare":
        raise SettingsError(f"usage: {USAGE}")

    from dynexit.data.prepare import PREPARABLE, prepare

    name = words[1]
    if name not in PREPARABLE:
        near = difflib.get_close_matches(name, PREPARABLE, n=1)
        raise SettingsError(
            f"NAME must be one of {', '.join(PREPARABLE)}, got {name!r}"
            + (f"; the nearest is {near[0]}" if near else "")
        )
    if name == "digits" and options["raw"] is not None:
        raise SettingsError("--raw is not for digits, which come with scikit-learn")
    try:
        print(prepare(name, options["raw"]))
    except ValueError as error:
        raise SettingsError(f"{name} cannot be prepared: {error}") from error
    return 0
