"""`dynexit evaluate RUN`: measures the test split again, at the operating point last chosen."""

from collections.abc import Sequence
from pathlib import Path

from dynexit.cli.options import Flag, parse
from dynexit.cli.positional import split
from dynexit.runs.pipeline import finish, log, recorded_rule, restored
from dynexit.runs.run_folder import reopen

EXPERIMENT = Flag(
    "experiment",
    str | None,
    None,
    "experiment file to rebuild the model from; by default the one recorded",
)


def evaluate(argv: Sequence[str]) -> int:
    """Rebuilds the model from the experiment file and reports anew."""
    words, rest = split(argv, "dynexit evaluate RUN [--experiment FILE]")
    options, _ = parse(rest, "dynexit evaluate RUN", (EXPERIMENT,))
    run = reopen(
        Path(words[0]), Path(options["experiment"]) if options["experiment"] else None, log
    )
    experiment, params, step = restored(run)
    finish(run, experiment, params, step, recorded_rule(run))
    return 0
