"""`dynexit train FILE`: from an experiment file to a report."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynexit.cli.options import Flag, parse
from dynexit.cli.positional import split
from dynexit.runs.experiment_file import ExperimentFile, SettingsError, load
from dynexit.runs.pipeline import REPORT, draw_training, finish, log
from dynexit.runs.run_folder import claim, default_folder

USAGE = "dynexit train FILE [--run FOLDER] [--smoke] [--model.depth 6 ...]"
STOPPED = 143  # what a shell calls a process that ended by SIGTERM


def train(argv: Sequence[str]) -> int:
    """Trains, calibrates, evaluates and reports; goes on with a run folder that was begun with the
    same settings.

    A run that had finished is not trained again: its weights are calibrated and measured anew.
    """
    words, rest = split(argv, USAGE)
    if not words:
        print(
            f"usage: {USAGE}\n\n`dynexit train FILE --help` shows every setting of FILE with its default."
        )
        return 0
    file = load(words[0])
    flags = (
        Flag(
            "run",
            str | None,
            None,
            "run folder; by default runs/NAME-TIME. An interrupted run in it goes on",
        ),
        Flag(
            "smoke",
            bool,
            False,
            "the same job in seconds: the file's SMOKE settings are the defaults",
        ),
    )
    smoke = "--smoke" in rest
    options, settings = parse(
        rest,
        f"dynexit train {words[0]}",
        flags,
        file.smoke if smoke else file.settings,
        file.summary,
    )

    experiment = _built(file, settings)
    name = f"{file.name}-smoke" if smoke else file.name
    run = claim(
        Path(options["run"]) if options["run"] else default_folder(name),
        file,
        settings,
        ["train", *argv],
        log,
    )
    if (run.folder / REPORT).exists():
        log(f"{run.folder} has finished before: its weights are calibrated and measured again")

    from dynexit.training.loop import fit

    fitted = fit(experiment, settings.training, run.folder, settings.seed)
    draw_training(run.folder)
    if fitted.stopped:
        again = resume_words(argv, run.folder)
        log(
            f"stopped at step {int(fitted.step)} of {settings.training.steps}, resume with: dynexit train {again}"
        )
        return STOPPED
    finish(run, experiment, fitted.params, int(fitted.step), settings.calibration)
    return 0


def _built(file: ExperimentFile, settings: Any) -> Any:
    """The experiment; loads JAX and the data.

    Raises:
      SettingsError: what the model, the method, the devices or the calibration would refuse.
    """
    try:
        experiment = file.build(settings)
        from dynexit.training.sharding import check_batch_size, data_mesh

        check_batch_size(settings.training.batch_size, data_mesh())
    except ValueError as error:
        raise SettingsError(f"{file.path} cannot be built with these settings: {error}") from error
    from dynexit.evaluation.preflight import check_experiment

    try:
        check_experiment(experiment)
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"{file.path} would be refused by calibration after training: {error}"
        ) from error
    return experiment


def resume_words(argv: Sequence[str], folder: Path) -> str:
    """The words that resume a run: those given, with its folder named."""
    named = any(word == "--run" or word.startswith("--run=") for word in argv)
    return shlex.join([*argv, *([] if named else ["--run", str(folder)])])
