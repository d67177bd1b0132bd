"""Measures a trained network at its operating point on the test split."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dynexit.calibration.curve import Curve, curve
from dynexit.calibration.records import Records
from dynexit.core.labels import exact
from dynexit.core.settings import Evaluation
from dynexit.core.shapes import Int, PyTree, Rows, Shaped
from dynexit.core.types import Experiment
from dynexit.engine.replay import replay_scores
from dynexit.engine.streaming.stream import is_tied
from dynexit.engine.tuning.tune import Tuned, tune
from dynexit.evaluation import latency
from dynexit.evaluation.batches import batches, prepared, taken_rows
from dynexit.evaluation.calibrate import COUNTED, Calibrated
from dynexit.evaluation.costs import RowCosts, costs_of
from dynexit.evaluation.devices import Devices, devices_for, kept_on
from dynexit.evaluation.latency import Ran
from dynexit.evaluation.recording import record
from dynexit.evaluation.timings import (
    TimedPoints,
    Timings,
    executor_of,
    programs,
    time_all,
    time_points,
    timed_rows,
)


class Evaluated(NamedTuple):
    """The measurements that the report and the plots show.

    Attributes:
      records: every exit of every row of the test split.
      costs: FLOPs per row.
      classes: `[M]` or `[M, ...]`, the answers of the dynamic program.
      exit: int64 `[M]`, the exit of each row.
      nan_exits: exits read with a NaN, over all rows.
      agreement: fraction of rows whose live answer and exit equal those from stored scores.
      timings, curve, timed: `Timings`, `Curve`, `TimedPoints`.
      tuned: executor and tiles of the dynamic program, or None for the engine's defaults.
      score: the method's.
      steps: int `[M]`, the sequential steps that each example needs, where the data has them; else
        None.
    """

    records: Records
    costs: RowCosts
    classes: Shaped[np.ndarray, "M ..."]
    exit: Int[np.ndarray, "M"]
    nan_exits: int
    agreement: float
    timings: Timings
    curve: Curve
    timed: TimedPoints
    tuned: Tuned | None
    score: Callable[[Any, Any], Any] = exact
    steps: Int[np.ndarray, "M"] | None = None


def evaluate(
    experiment: Experiment,
    params: PyTree,
    calibrated: Calibrated,
    evaluation: Evaluation,
    log: Callable[[str], None],
    mesh: Mesh | None = None,
) -> Evaluated:
    """Measures the test split, read batch by batch.

    Args:
      experiment: the trained experiment.
      params: its parameters.
      calibrated: of `dx.evaluation.calibrate`: the operating point, for whose exits tiles are
        tuned; all candidates, which are only drawn; FLOPs per row, counted again where the examples
        of the test split have another shape than those of the calibration split.
      evaluation: `core.settings.Evaluation`.
      log: receives a line for every phase.
      mesh: devices that run a batch each where nothing is timed; None for one device. Figures that
        are not seconds do not depend on it.
    """
    choice, points, method = calibrated.choice, calibrated.points, experiment.method
    operating_point, examples = choice.operating_point, experiment.test.examples()
    criterion, size = method.criterion(operating_point), evaluation.batch_size
    log("test split: every exit")
    devices = devices_for(params, mesh)
    placed = devices.place(params)
    records = record(experiment, placed, experiment.test, size, criterion, devices)
    prepare = jax.jit(lambda inputs: prepared(experiment, inputs))
    few = prepare(taken_rows(examples["inputs"], slice(COUNTED)))
    costs = calibrated.costs
    if _row_shapes(examples) != _row_shapes(experiment.calibration.examples()):
        costs = costs_of(experiment.model, params, few, criterion)
    drawn = curve(records, points, method.criterion, costs.until, costs.full)
    chosen = timed_rows(len(records.labels), evaluation, _row_bytes(few))
    timed_batches = latency.in_batches(
        jax.tree.map(np.asarray, prepare(taken_rows(examples["inputs"], chosen))), size
    )

    step, state = (
        experiment.model.steps(params),
        jax.jit(experiment.model.embed)(params, timed_batches[0]),
    )
    tuned = None
    if evaluation.tune:
        log("tuning: what tiles of every size cost on this device")
        rows_at = np.rint(choice.exit_fraction * choice.rows).astype(int)
        exits = np.repeat(np.arange(len(rows_at)), rows_at)
        tuned = tune(step, state, experiment.model.depth, exits, criterion=criterion)
        log(f"tuned: {tuned}")
    log(f"test split: timing full and dynamic depth side by side, {evaluation.repeats} times")
    tied = not isinstance(step, tuple) and is_tied(step, state)
    calls = programs(experiment, params, size, tuned, tied)
    run = calls.dynamic
    if devices.mesh is not None:
        run = _on_devices(devices, experiment, placed, tuned)
    ran, executed = _live(run, operating_point, examples, size, experiment, devices)
    taken = np.searchsorted(costs.depths, ran.exit_depth)
    timed_exits = np.resize(taken[chosen], len(timed_batches) * size)  # padded with the first
    occupancy = float((taken + 1).sum() / executed)
    timings = time_all(
        calls, operating_point, timed_batches, evaluation, costs, timed_exits, occupancy
    )
    log("test split: timing points along the curve")
    timed = time_points(calls, points, drawn, timed_batches, evaluation, costs, timings.tile)

    one = jax.tree.map(lambda a: jnp.asarray(a)[None], operating_point)
    exits = np.asarray(replay_scores(method.criterion, one, records.scores, records.nan))[0]
    answers = records.predictions[exits, np.arange(len(exits))]
    same = (answers == ran.classes).reshape(len(exits), -1).all(axis=1) & (exits == taken)
    nans, needed = int(ran.nan_exits.sum()), examples.get("steps")
    live = np.asarray(ran.classes), taken, nans, float(same.mean())
    return Evaluated(records, costs, *live, timings, drawn, timed, tuned, method.score, needed)


def _on_devices(
    devices: Devices, experiment: Experiment, params: PyTree, tuned: Tuned | None
) -> Callable[[PyTree, PyTree], Ran]:
    """The dynamic program on a batch for every device; its `rows_executed` is `[D]`."""
    model, method = experiment.model, experiment.method
    chosen = executor_of(tuned)

    def dynamic(shared: tuple[PyTree, PyTree], inputs: Rows) -> Ran:
        ran = latency.dynamic_depth(model, method, *shared, inputs, *chosen)
        return ran._replace(rows_executed=ran.rows_executed[None])

    run = devices.compile(dynamic)
    return lambda operating_point, inputs: run((params, devices.place(operating_point)), inputs)


def _live(
    dynamic: Callable[[PyTree, PyTree], Ran],
    operating_point: PyTree,
    examples: dict[str, Any],
    size: int,
    experiment: Experiment,
    devices: Devices,
) -> tuple[Ran, float]:
    """Result of the dynamic program for all rows, and rows x steps executed per row of the split.

    Padding rows are included in the latter.
    """
    prepare = devices.compile(lambda _, inputs: prepared(experiment, inputs), whole=False)
    parts, executed = [], 0.0
    for batch in batches(examples, size * devices.count):
        ran = dynamic(operating_point, prepare((), batch.inputs))
        for rows, kept in zip(
            np.atleast_1d(ran.rows_executed), kept_on(devices, batch.kept, size), strict=True
        ):
            executed += float(rows) * int(kept) / size
        each = ran._replace(rows_executed=np.zeros(batch.kept, np.int32))
        parts.append(jax.tree.map(lambda a, n=batch.kept: np.asarray(a)[:n], each))
    return jax.tree.map(lambda *a: np.concatenate(a), *parts), executed


def _row_shapes(examples: dict[str, Any]) -> list[tuple[int, ...]]:
    return [np.shape(leaf)[1:] for leaf in jax.tree.leaves(examples["inputs"])]


def _row_bytes(inputs: PyTree) -> int:
    return sum(leaf.nbytes // len(leaf) for leaf in jax.tree.leaves(inputs))
