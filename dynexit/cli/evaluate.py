"""`dynexit evaluate RUN`: measures the test split again, at the recorded operating point."""

from collections.abc import Sequence
from pathlib import Path

from dynexit.cli.options import Flag, parse
from dynexit.cli.positional import split
from dynexit.runs.experiment_file import SettingsError
from dynexit.runs.pipeline import log, remeasure, restored
from dynexit.runs.run_folder import reopen

EXPERIMENT = Flag(
    "experiment",
    str | None,
    None,
    "experiment file to rebuild the model from; by default the one recorded",
)
CHECKPOINT = Flag(
    "checkpoint",
    str,
    "newest",
    "newest, best (highest mean accuracy over the exits on the calibration split) or a step",
)
USAGE = (
    "dynexit evaluate RUN [--checkpoint newest|best|STEP] [--batch-size 128] [--experiment FILE]"
)

BATCH_SIZE = Flag(
    "batch_size", int | None, None, "rows per call of the program; by default the run's"
)


def evaluate(argv: Sequence[str]) -> int:
    """Rebuilds the model and reports again; no operating point is chosen."""
    words, rest = split(argv, USAGE)
    options, _ = parse(rest, "dynexit evaluate RUN", (CHECKPOINT, EXPERIMENT, BATCH_SIZE))
    checkpoint, batch_size = chosen_checkpoint(options["checkpoint"]), options["batch_size"]
    if batch_size is not None and batch_size < 1:
        raise SettingsError(f"--batch-size must be at least 1, got {batch_size}")
    run = reopen(
        Path(words[0]), Path(options["experiment"]) if options["experiment"] else None, log
    )
    experiment, params, step = restored(run, checkpoint)
    remeasure(run, experiment, params, step, batch_size)
    return 0


def chosen_checkpoint(word: str) -> str | int:
    """The value of `--checkpoint`.

    Raises:
      SettingsError: it is not newest, best or a step.

    Example:
      >>> chosen_checkpoint("best"), chosen_checkpoint("500")
      ('best', 500)
    """
    if word in ("newest", "best"):
        return word
    if not word.isdecimal():
        raise SettingsError(f"--checkpoint must be newest, best or a step, got {word!r}")
    return int(word)
