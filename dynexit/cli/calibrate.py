"""`dynexit calibrate RUN`: another operating point for a trained network."""

from collections.abc import Sequence
from pathlib import Path

from dynexit.cli.evaluate import CHECKPOINT, EXPERIMENT, chosen_checkpoint
from dynexit.cli.options import Flag, parse
from dynexit.cli.positional import split
from dynexit.core.settings import Calibration, validate
from dynexit.runs.experiment_file import SettingsError
from dynexit.runs.pipeline import finish, log, restored
from dynexit.runs.run_folder import reopen

USAGE = "dynexit calibrate RUN --accept-loss 0.005 [--max-negative-flips 0.002] | --budget 0.5"


def calibrate(argv: Sequence[str]) -> int:
    """Chooses by a new rule from the calibration split, keeps it in `calibration.json`, and reports
    anew.
    """
    words, rest = split(argv, USAGE)
    flags = (
        Flag(
            "accept_loss",
            float | None,
            None,
            "accuracy that may be lost against full depth, as a fraction",
        ),
        Flag("budget", float | None, None, "fraction of full-depth FLOPs that may be spent"),
        Flag(
            "max_negative_flips",
            float | None,
            None,
            "with --accept-loss: fraction of rows that may turn from right to wrong",
        ),
        CHECKPOINT,
        EXPERIMENT,
    )
    options, _ = parse(rest, "dynexit calibrate RUN", flags)
    checkpoint = chosen_checkpoint(options["checkpoint"])
    if (options["accept_loss"] is None) == (options["budget"] is None):
        raise SettingsError(f"exactly one of --accept-loss and --budget is wanted\nusage: {USAGE}")
    if options["max_negative_flips"] is not None and options["accept_loss"] is None:
        raise SettingsError(f"--max-negative-flips goes with --accept-loss\nusage: {USAGE}")
    rule = Calibration(options["accept_loss"], options["budget"], options["max_negative_flips"])
    if found := validate(rule):
        raise SettingsError("; ".join(found))
    run = reopen(
        Path(words[0]), Path(options["experiment"]) if options["experiment"] else None, log
    )
    experiment, params, step = restored(run, checkpoint)
    finish(run, experiment, params, step, rule)
    return 0
