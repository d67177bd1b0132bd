"""A run folder opened from Python, for whatever the commands do not do."""

from pathlib import Path
from typing import Any, NamedTuple

from dynexit.runs.experiment_file import Experiment
from dynexit.runs.pipeline import log, restored
from dynexit.runs.run_folder import reopen


class Trained(NamedTuple):
    """What a run made.

    Attributes:
      experiment: as its file builds it, with the run's settings.
      params: of the checkpoint.
      step: updates made when it was saved.
      settings: the run's.
    """

    experiment: Experiment
    params: Any
    step: int
    settings: Any


def trained(
    folder: Path | str,
    experiment: Path | str | None = None,
    checkpoint: str | int = "newest",
) -> Trained:
    """Opens a run.

    Args:
      folder: the run's.
      experiment: the experiment file, where it is no longer where the run was trained from.
      checkpoint: "newest"; "best", the parameters with the highest mean accuracy over the exits on
        the calibration split; or a step.

    Returns:
      `Trained`.

    Raises:
      SettingsError: no run there, a damaged record, no experiment file or no such checkpoint.

    Example:
      `experiment, params, step, settings = dx.runs.trained("runs/digits")`
    """
    run = reopen(Path(folder), None if experiment is None else Path(experiment), log)
    built, params, step = restored(run, checkpoint)
    return Trained(built, params, step, run.settings)
