"""The part of a run after training: calibration, measurement, the report and its plots."""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynexit.core.files import replacing
from dynexit.core.settings import Calibration, Evaluation
from dynexit.core.system import cores
from dynexit.runs.choice_file import CALIBRATION, Calibrated, read_choice, rule_of, write_choice
from dynexit.runs.experiment_file import Experiment, SettingsError
from dynexit.runs.run_folder import Run, versions, write_json, write_text

REPORT, TRAINING = "report.json", "training.png"


def log(line: str) -> None:
    """Prints a line beside the stream of the progress bar."""
    print(line, file=sys.stderr, flush=True)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], width: int = 110) -> None:
    """Prints a table at least `width` wide: the first column left, the others right."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left")
    for k, name in enumerate(head):
        shown.add_column(name, justify="left" if k == 0 else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    console = Console()
    Console(width=max(console.width, width)).print(shown)


def hardware() -> str:
    """Kind and number of the devices, and the host's cores."""
    import jax

    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}, {cores()} host cores"


def restored(run: Run, checkpoint: str | int = "newest") -> tuple[Experiment, Any, int]:
    """The experiment, built from its file, with the parameters of a checkpoint and their step.

    Args:
      run: the run folder and its settings.
      checkpoint: "newest", "best" or a step.

    Raises:
      SettingsError: the run has no such checkpoint.
    """
    experiment = run.file.build(run.settings)
    return experiment, *restored_params(run, experiment.model, checkpoint)


def restored_params(run: Run, model: Any, checkpoint: str | int = "newest") -> tuple[Any, int]:
    """The parameters of a checkpoint and their step; arguments and errors as of `restored`."""
    import jax

    from dynexit.training.checkpointing.checkpoints import missing, restore

    template = {"params": jax.eval_shape(model.init, jax.random.key(0))}
    found = restore(run.folder, template, checkpoint)
    if found is None and checkpoint == "newest":
        raise SettingsError(f"{run.folder} holds no checkpoint: nothing was trained there yet")
    if found is None:
        raise SettingsError(missing(run.folder, checkpoint))
    return found.tree["params"], found.step


def draw_training(folder: Path) -> Path | None:
    """Draws `training.png` from `metrics.jsonl`; returns its path, None without records."""
    from dynexit.evaluation.reports.training_plot import training_curves
    from dynexit.training.logs import FILE, read_records

    records = read_records(folder / FILE)
    if not records:
        return None
    with replacing(folder / TRAINING) as draft:
        training_curves(records, draft)
    return folder / TRAINING


def finish(
    run: Run, experiment: Experiment, params: Any, step: int, rule: Calibration
) -> dict[str, Any]:
    """Chooses an operating point, writes it to `calibration.json`, and measures it.

    Several processes all call it: each runs its share of every batch, process 0 measures time and
    writes.

    Args:
      run: the run folder and its settings.
      experiment: built from them.
      params: the trained parameters.
      step: after how many optimizer steps.
      rule: how the operating point is chosen.

    Returns:
      The content of `report.json`; empty on processes other than 0.
    """
    import jax

    from dynexit.core.processes.together import from_first
    from dynexit.evaluation.calibrate import calibrate

    log("calibration split: every exit, and an operating point")
    mesh, settings = mesh_for(params), run.settings.evaluation
    calibrated = calibrate(experiment, params, rule_of(rule), settings.batch_size, log, mesh)
    chosen = write_choice(run, calibrated, rule, step) if jax.process_index() == 0 else {}
    content = measured(run, experiment, params, step, calibrated, chosen, settings, mesh)
    from_first(lambda: None, "writes the report", log)
    return content


def remeasure(
    run: Run, experiment: Experiment, params: Any, step: int, batch_size: int | None = None
) -> dict[str, Any]:
    """Measures at the recorded operating point; a run that has none yet is calibrated first.

    Args:
      run, experiment, params, step: as in `finish`.
      batch_size: rows per call of the measured program; None for the run's setting.

    Returns:
      The content of `report.json`.
    """
    settings = run.settings.evaluation
    if batch_size is not None:
        settings = dataclasses.replace(settings, batch_size=batch_size)
    found = read_choice(run)
    if found is None:
        log(f"{run.folder} holds no {CALIBRATION}: an operating point is chosen first")
        return finish(run, experiment, params, step, run.settings.calibration)
    calibrated, chosen = found
    if chosen["training_step"] != step:
        log(
            f"WARNING: the operating point was chosen for the weights of step "
            f"{chosen['training_step']}, and these are of step {step}; `dynexit calibrate` chooses "
            "again"
        )
    mesh = mesh_for(params)
    return measured(run, experiment, params, step, calibrated, chosen, settings, mesh)


def measured(
    run: Run,
    experiment: Experiment,
    params: Any,
    step: int,
    calibrated: Calibrated,
    chosen: dict[str, Any],
    settings: Evaluation,
    mesh: Any = None,
) -> dict[str, Any]:
    """Evaluates; process 0 writes `report.json`, `report.md` and plots, and prints the table."""
    import jax

    from dynexit import evaluation
    from dynexit.calibration.choose import refuse_same_split
    from dynexit.evaluation.batches import rows_of
    from dynexit.runs.rows import write_rows

    choice = calibrated.choice
    evaluated = evaluation.evaluate(experiment, params, calibrated, settings, log, mesh)
    refuse_same_split(choice, evaluated.records.split, evaluated.records.fingerprint)
    if jax.process_index() > 0:
        return {}
    splits = experiment.train, experiment.calibration, experiment.test
    about = {
        "name": run.recorded["name"],
        "summary": run.file.summary,
        "classes": list(experiment.classes),
        "data": {s.split: rows_of(s) for s in splits},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "training": {"step": step, "of": run.settings.training.steps},
        "calibration": {k: v for k, v in chosen.items() if k not in ("points", "flops_per_row")},
        "seed": run.settings.seed,
        "batch_size": settings.batch_size,
        "repeats": settings.repeats,
        "hardware": hardware(),
        "command": shlex.join(run.recorded["command"]),
        "commit": run.recorded["commit"],
        "versions": versions(),
        "plots": ["accuracy", "depth"],
    }
    content = evaluation.report(evaluated, choice.operating_point, about)
    log("drawing")
    with replacing(run.folder / "accuracy.png") as draft:
        evaluation.plots.accuracy_against_compute(content, draft)
    with replacing(run.folder / "depth.png") as draft:
        evaluation.plots.depth_histogram(content, draft)
    inputs, labels = experiment.test.examples()["inputs"], evaluated.records.labels
    with replacing(run.folder / "examples.png") as draft:
        drawn = evaluation.pictures.examples_by_depth(
            inputs, labels, evaluated.classes, evaluated.exit, content, draft
        )
    if drawn is not None:
        content["plots"].append("examples")
    else:
        (run.folder / "examples.png").unlink(missing_ok=True)
    write_rows(
        run.folder / "rows.csv", experiment.test.examples(), evaluated.classes, evaluated.exit
    )
    write_json(run.folder / REPORT, content)
    write_text(run.folder / "report.md", evaluation.markdown(content))
    table(
        f"{content['name']}: test split",
        ("", "full depth", "dynamic depth"),
        evaluation.summary(content),
    )
    print(run.folder)
    return content


def mesh_for(params: Any) -> Any:
    """The mesh on which parameters are evaluated; None where there is one device.

    It is their own, if they have one, else one of the devices of all processes.
    """
    import jax
    from jax.sharding import AxisType

    from dynexit.evaluation.devices import mesh_of

    count = jax.device_count()
    if count == 1:
        return None
    return mesh_of(params) or jax.make_mesh((count,), ("data",), (AxisType.Auto,))
