"""A run folder opened from Python, for whatever the commands do not do."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dynexit.runs.experiment_file import Experiment
from dynexit.runs.pipeline import log, restored, restored_params
from dynexit.runs.run_folder import reopen

if TYPE_CHECKING:
    from dynexit.core.types import Model


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


class TrainedModel(NamedTuple):
    """The model that a run made.

    Attributes:
      model: as the experiment file builds it, with the run's settings.
      params: of the checkpoint.
      settings: the run's.
      classes: names of the classes, may be empty.
    """

    model: "Model"
    params: Any
    settings: Any
    classes: tuple[str, ...]


def trained_model(
    folder: Path | str,
    experiment: Path | str | None = None,
    checkpoint: str | int = "newest",
) -> TrainedModel:
    """Opens the model of a run alone.

    The data are not read, and need not be there, where the experiment file has no `build` of its
    own and the settings of the data know `inputs` and `classes`, as `dx.data.TextDocuments` do.

    Args:
      folder, experiment, checkpoint: as in `trained`.

    Returns:
      `TrainedModel`.

    Raises:
      SettingsError: as `trained`.
    """
    place, file = Path(folder), None if experiment is None else Path(experiment)
    run = reopen(place, file, log, data=False)
    data: Any = getattr(run.settings, "data", None)
    if run.file.own or not (hasattr(data, "inputs") and hasattr(data, "classes")):
        built = trained(folder, experiment, checkpoint)
        made = built.experiment
        return TrainedModel(made.model, built.params, built.settings, tuple(made.classes))
    model = run.settings.model.build(data.inputs, len(data.classes))
    params, _ = restored_params(run, model, checkpoint)
    return TrainedModel(model, params, run.settings, tuple(data.classes))
