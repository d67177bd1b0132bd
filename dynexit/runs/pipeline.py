"""What follows training: the operating point from the calibration split, the test split measured,
the report and its plots.
"""

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynexit.core.files import replacing
from dynexit.core.settings import Calibration
from dynexit.core.system import cores
from dynexit.runs.experiment_file import SettingsError
from dynexit.runs.rows import write_rows
from dynexit.runs.run_folder import Run, versions, write_json, write_text

CALIBRATION, REPORT, TRAINING = "calibration.json", "report.json", "training.png"


def log(line: str) -> None:
    """A line for people, beside the progress bar's stream."""
    print(line, file=sys.stderr, flush=True)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], width: int = 110) -> None:
    """Prints a table: the first column to the left, the others to the right; at least `width`
    characters are there for it.
    """
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


def recorded_rule(run: Run) -> Calibration:
    """How the operating point was last chosen: `calibration.json`, else the run's settings."""
    path = run.folder / CALIBRATION
    if not path.exists():
        return run.settings.calibration
    try:
        return Calibration(**json.loads(path.read_text())["rule"])
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"{path} is damaged: {error}; `dynexit calibrate {run.folder} ...` writes it again"
        ) from error


def restored(run: Run, checkpoint: str | int = "newest") -> tuple[Any, Any, int]:
    """The experiment, built from its file, with the parameters of a checkpoint and their step.

    Args:
      run: the run folder and its settings.
      checkpoint: "newest", "best" or a step.

    Raises:
      SettingsError: the run has no such checkpoint.
    """
    import jax

    from dynexit.training.checkpoints import missing, restore

    experiment = run.file.build(run.settings)
    template = {"params": jax.eval_shape(experiment.model.init, jax.random.key(0))}
    found = restore(run.folder, template, checkpoint)
    if found is None and checkpoint == "newest":
        raise SettingsError(f"{run.folder} holds no checkpoint: nothing was trained there yet")
    if found is None:
        raise SettingsError(missing(run.folder, checkpoint))
    return experiment, found.tree["params"], found.step


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


def finish(run: Run, experiment: Any, params: Any, step: int, rule: Calibration) -> dict:
    """Calibrates, evaluates, writes `calibration.json`, `report.json`, `report.md` and the plots,
    and prints the table.

    Args:
      run: the run folder and its settings.
      experiment: built from them.
      params: the trained parameters.
      step: after how many optimizer steps.
      rule: how the operating point is chosen.

    Returns:
      The content of `report.json`.
    """
    import jax

    from dynexit import evaluation
    from dynexit.calibration.choose import refuse_same_split

    measured = run.settings.evaluation
    # training spreads them; timing is of one device
    params = jax.device_put(jax.device_get(params), jax.devices()[0])
    costs, points, choice, chosen = _calibrate(run, experiment, params, rule)
    evaluated = evaluation.evaluate(experiment, params, costs, choice, points, measured, log)
    refuse_same_split(choice, evaluated.predictions)
    about = {
        "name": run.recorded["name"],
        "summary": run.file.summary,
        "classes": list(experiment.classes),
        "data": {
            s.split: len(s.examples()["labels"])
            for s in (experiment.train, experiment.calibration, experiment.test)
        },
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "training": {"step": step, "of": run.settings.training.steps},
        "calibration": chosen,
        "seed": run.settings.seed,
        "batch_size": measured.batch_size,
        "repeats": measured.repeats,
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
    inputs, labels = experiment.test.examples()["inputs"], evaluated.predictions.labels
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


def _calibrate(
    run: Run, experiment: Any, params: Any, rule: Calibration
) -> tuple[Any, Any, Any, dict]:
    """FLOPs per row, all candidate points, the chosen one, and what is written down about the
    choice.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from dynexit import evaluation
    from dynexit.calibration.choose import choose
    from dynexit.engine.deferred import deferred_parts
    from dynexit.engine.replay import replay

    log("calibration split: every exit, and an operating point")
    method, batch_size = experiment.method, run.settings.evaluation.batch_size
    held_out = evaluation.predict(experiment, params, experiment.calibration, batch_size)
    inputs = jax.tree.map(lambda a: jnp.asarray(a[:8]), experiment.calibration.examples()["inputs"])
    inputs = evaluation.prepared(experiment, inputs)
    costs = evaluation.costs_of(experiment.model, params, inputs)
    points = method.candidates(
        held_out.outputs, held_out.labels, jnp.asarray(costs.until, jnp.float32)
    )
    # what a rule reads is not known before there are points
    if deferred_parts(experiment.model.steps(params)):
        costs = evaluation.costs_of(
            experiment.model, params, inputs, method.criterion(jax.tree.map(lambda a: a[0], points))
        )
    accept_loss = rule.accept_loss if rule.budget is None else None
    flips = rule.max_negative_flips if rule.budget is None else None
    rules = dict(accept_loss=accept_loss, budget=rule.budget, max_negative_flips=flips)
    choice = choose(
        held_out,
        points,
        method.criterion,
        method.predict,
        costs.until,
        replay,
        **rules,
        score=method.score,
        full_cost=costs.full,
    )
    chosen = {
        "rule": dataclasses.asdict(rule),
        "chosen_by": choice.accepted,
        "split": choice.split,
        "examples": choice.rows,
        "fingerprint": choice.fingerprint,
        "accuracy": choice.accuracy,
        "accuracy_full": choice.accuracy_full,
        "standard_error": choice.standard_error,
        "flops_ratio": choice.cost / costs.full,
        "operating_point": jax.tree.map(lambda a: np.asarray(a).tolist(), choice.operating_point),
    }
    write_json(run.folder / CALIBRATION, chosen)
    return costs, points, choice, chosen
