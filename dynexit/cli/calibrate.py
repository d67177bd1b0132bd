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

USAGE = (
    "dynexit calibrate RUN --accept-loss 0.005 [--max-negative-flips 0.002] | --budget 0.5 "
    "| --risk 0.01 [--delta 0.1]"
)
FLAGS = (
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
    Flag("risk", float | None, None, "accuracy that new rows may lose, with probability 1 - delta"),
    Flag("delta", float | None, None, "with --risk: 0.1 by default"),
    CHECKPOINT,
    EXPERIMENT,
)


def calibrate(argv: Sequence[str]) -> int:
    """Chooses by a new rule, writes `calibration.json`, and reports again."""
    words, rest = split(argv, USAGE)
    options, _ = parse(rest, "dynexit calibrate RUN", FLAGS)
    checkpoint = chosen_checkpoint(options["checkpoint"])
    given = [name for name in ("accept_loss", "budget", "risk") if options[name] is not None]
    if len(given) != 1:
        raise SettingsError(
            f"exactly one of --accept-loss, --budget and --risk is wanted\nusage: {USAGE}"
        )
    for name, rule in (("max_negative_flips", "accept_loss"), ("delta", "risk")):
        if options[name] is not None and rule not in given:
            flags = (f"--{n.replace('_', '-')}" for n in (name, rule))
            raise SettingsError("{} goes with {}\nusage: {}".format(*flags, USAGE))
    named = {
        name: options[name] for name in ("accept_loss", "budget", "max_negative_flips", "risk")
    }
    if options["delta"] is not None:
        named["delta"] = options["delta"]
    rule = Calibration(**named)
    if found := validate(rule):
        raise SettingsError("; ".join(found))
    run = reopen(
        Path(words[0]), Path(options["experiment"]) if options["experiment"] else None, log
    )
    experiment, params, step = restored(run, checkpoint)
    finish(run, experiment, params, step, rule)
    return 0
