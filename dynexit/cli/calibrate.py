"""`dynexit calibrate RUN`: another operating point for a trained network."""

from collections.abc import Sequence
from pathlib import Path

from dynexit.cli.evaluate import EXPERIMENT
from dynexit.cli.positional import split
from dynexit.cli.settings import Flag, SettingsError, parse
from dynexit.core.settings import Calibration, faults
from dynexit.runs.pipeline import finish, restored, say
from dynexit.runs.run_folder import reopen

USAGE = "dynexit calibrate RUN --accept-loss 0.005 [--accept-flips 0.002] | --budget 0.5"


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
            "accept_flips",
            float | None,
            None,
            "with --accept-loss: fraction of rows that may turn from right to wrong",
        ),
        EXPERIMENT,
    )
    options, _ = parse(rest, "dynexit calibrate RUN", flags)
    if (options["accept_loss"] is None) == (options["budget"] is None):
        raise SettingsError(f"exactly one of --accept-loss and --budget is wanted\nusage: {USAGE}")
    if options["accept_flips"] is not None and options["accept_loss"] is None:
        raise SettingsError(f"--accept-flips goes with --accept-loss\nusage: {USAGE}")
    rule = Calibration(options["accept_loss"], options["budget"], options["accept_flips"])
    if found := faults(rule):
        raise SettingsError("; ".join(found))
    run = reopen(
        Path(words[0]), Path(options["experiment"]) if options["experiment"] else None, say
    )
    experiment, params, step = restored(run)
    finish(run, experiment, params, step, rule)
    return 0
