"""The experiment of a run with all that training would refuse late refused before it begins."""

import math
from pathlib import Path
from typing import Any

from dynexit.core.settings import Training
from dynexit.core.system import memory
from dynexit.runs.experiment_file import Experiment, ExperimentFile, SettingsError
from dynexit.runs.pipeline import log


def built(file: ExperimentFile, settings: Any, given: str) -> Experiment:
    """The experiment; loads JAX and the data.

    Raises:
      SettingsError: what the model, the method, the devices or the calibration would refuse.
    """
    try:
        experiment = file.build(settings)
        from dynexit.training.parallel.mesh import check_batch_size

        mesh = mesh_of(settings)
        check_batch_size(settings.training.batch_size, mesh)
        refuse_too_large(experiment, settings.training, mesh)
        _refuse_data(experiment, settings)
    except ValueError as error:
        words = f" with {given}" if given else ""
        raise SettingsError(f"{file.path} cannot be built{words}: {error}") from error
    from dynexit.evaluation.preflight import check_experiment

    try:
        check_experiment(experiment)
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"{file.path} would be refused by calibration after training: {error}"
        ) from error
    return experiment


def mesh_of(settings: Any) -> Any:
    """The mesh of a run's settings; those that are no `dx.Settings` may lack it.

    Raises:
      ValueError: it does not fit the devices.
    """
    from dynexit.core.settings import Mesh
    from dynexit.training.parallel.mesh import make_mesh

    return make_mesh(getattr(settings, "mesh", Mesh()))


def _refuse_data(experiment: Experiment, settings: Any) -> None:
    from dynexit.data.late_faults import refuse_late_faults

    try:
        refuse_late_faults(experiment, settings.seed, settings.training.batch_size)
    except TypeError as error:
        raise ValueError(error) from error


def refuse_too_large(experiment: Experiment, training: Training, mesh: Any) -> None:
    """Refuses a model whose training state the devices do not hold; nothing is computed.

    Raises:
      ValueError: with the bytes of the state on a device and of the device; or the mesh does not
        fit the parameters.
    """
    import jax

    from dynexit.training.parallel.mesh import in_words
    from dynexit.training.state import state_shapes, state_shardings

    device, here = jax.local_devices()[0], jax.local_device_count()
    limit = ((device.memory_stats() or {}) if device.platform != "cpu" else {}).get("bytes_limit")
    if limit is None and (host := memory()) is not None:
        limit = host / here
    part = lambda a, where: math.prod(where.shard_shape(a.shape)) * a.dtype.itemsize
    where = state_shardings(experiment, training, mesh)
    need = sum(jax.tree.leaves(jax.tree.map(part, state_shapes(experiment, training), where)))
    if limit is not None and need > limit:
        raise ValueError(
            f"weights and optimizer state need {need / 1e9:.1f} GB on each device of the mesh "
            f"{in_words(mesh)}, and a device has {limit / 1e9:.1f} GB; choose a smaller width or "
            "depth, or a larger --mesh.fsdp"
        )


def started_from(folder: Path, experiment: Experiment) -> Experiment:
    """The experiment with the newest weights of a run in place of random ones.

    Raises:
      SettingsError: the run has no checkpoint, or its weights are of another model.
    """
    import jax

    from dynexit.training.checkpointing.checkpoints import CheckpointError, restore_params

    shapes = jax.eval_shape(experiment.model.init, jax.random.key(0))
    try:
        params, step = restore_params(folder, shapes)
    except (FileNotFoundError, CheckpointError, ValueError) as error:
        raise SettingsError(f"--init {folder} cannot be used: {error}") from error
    log(f"training starts from the weights of {folder}, step {step}")
    return experiment._replace(model=experiment.model._replace(init=lambda key: params))
