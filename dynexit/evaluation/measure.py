"""Measures a trained network at its operating point on the test split."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dynexit.calibration.choose import Choice
from dynexit.calibration.curve import Curve, curve
from dynexit.calibration.records import Records
from dynexit.core.labels import exact
from dynexit.core.settings import Evaluation
from dynexit.core.shapes import Array, Int, PyTree, Rows, Shaped
from dynexit.core.types import Criterion, Experiment
from dynexit.engine.replay import replay_scores
from dynexit.engine.streaming.stream import is_tied
from dynexit.engine.tuning.tune import Tuned, tune
from dynexit.evaluation import latency
from dynexit.evaluation.batches import prepared, taken_rows
from dynexit.evaluation.calibrate import Calibrated, few_inputs
from dynexit.evaluation.costs import RowCosts, costs_of
from dynexit.evaluation.devices import devices_for
from dynexit.evaluation.live import on_devices, run_live, tuned_by_first
from dynexit.evaluation.recording import record
from dynexit.evaluation.timings import (
    TimedPoints,
    Timings,
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
      occupancy: rows x blocks that rows needed, as a fraction of those that the program ran.
      curve: `Curve`.
      timings, timed: `Timings`, `TimedPoints`; None where a device cannot hold the parameters, and
        on processes other than 0.
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
    occupancy: float
    curve: Curve
    timings: Timings | None
    timed: TimedPoints | None
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

    Time is measured by process 0, on its first device, which must hold the parameters whole; the
    other processes wait. All else runs on all devices of the mesh.

    Args:
      experiment: the trained experiment.
      params: its parameters.
      calibrated: of `dx.evaluation.calibrate`: the operating point, for whose exits tiles are
        tuned; all candidates, which are only drawn; FLOPs per row, counted again where the examples
        of the test split have another shape than those of the calibration split.
      evaluation: `core.settings.Evaluation`.
      log: receives a line for every phase.
      mesh: devices that run a batch each where nothing is timed; None for one device. Figures that
        are not seconds do not depend on it. Where they are those of several processes, all call it
        and have the figures.
    """
    choice, points, method = calibrated.choice, calibrated.points, experiment.method
    operating_point, examples = choice.operating_point, experiment.test.examples()
    criterion, size = method.criterion(operating_point), evaluation.batch_size
    log("test split: every exit")
    devices = devices_for(params, mesh)
    placed = devices.place(params)
    records = record(experiment, placed, experiment.test, size, criterion, devices)
    few, costs = few_inputs(experiment, experiment.test), calibrated.costs
    if _row_shapes(examples) != _row_shapes(experiment.calibration.examples()):
        costs = costs_of(experiment.model, params, few, criterion)
    drawn = curve(records, points, method.criterion, costs.until, costs.full)

    stand = tuned = calls = None
    chosen = timed_rows(len(records.labels), evaluation, _row_bytes(few))
    if devices.split:
        size_in_words = f"{sum(a.nbytes for a in jax.tree.leaves(params)) / 1e9:.3g} GB"
        log(f"nothing is timed: no device can hold the parameters whole, {size_in_words}")
    elif devices.first:
        alone = placed if devices.mesh is None else jax.tree.map(_here, placed)
        stand = Stand.of(experiment, alone, examples["inputs"], chosen, size)
    if evaluation.tune and not devices.split:
        log("tuning: what tiles of every size cost on this device")
        tuned = tuned_by_first(lambda: _tune(stand, choice, criterion), devices, log)
        log(f"tuned: {tuned}")
    if stand is not None:
        calls = programs(experiment, stand.params, size, tuned, stand.tied)
    if devices.mesh is None:
        assert calls is not None, "one device holds the parameters"
        run = calls.dynamic
    else:
        run = on_devices(devices, experiment, placed, tuned)
    ran, executed = run_live(run, operating_point, examples, size, experiment, devices)
    taken = np.searchsorted(costs.depths, ran.exit_depth)

    timings = timed = None
    if stand is not None and calls is not None:
        exits = np.resize(taken[chosen], len(stand.batches) * size)  # padded with the first
        repeats = evaluation.repeats
        log(f"test split: timing full and dynamic depth side by side, {repeats} times")
        timings = time_all(calls, operating_point, stand.batches, evaluation, costs, exits)
        log("test split: timing points along the curve")
        timed = time_points(calls, points, drawn, stand.batches, evaluation, costs, timings.tile)
    devices.from_first(lambda: None, "measures time", log)

    one = jax.tree.map(lambda a: jnp.asarray(a)[None], operating_point)
    replayed = replay_scores(method.criterion, one, records.scores, records.nan)
    exits = np.asarray(replayed)[0]
    answers = records.predictions[exits, np.arange(len(exits))]
    same = (answers == ran.classes).reshape(len(exits), -1).all(axis=1) & (exits == taken)
    nans, needed = int(ran.nan_exits.sum()), examples.get("steps")
    occupancy = float((taken + 1).sum() / executed)
    live = np.asarray(ran.classes), taken, nans, float(same.mean()), occupancy
    return Evaluated(records, costs, *live, drawn, timings, timed, tuned, method.score, needed)


class Stand(NamedTuple):
    """What is timed, on one device.

    Attributes:
      params: the parameters.
      batches: of prepared inputs, for the timed rows.
      step: the network.
      state: of the first batch, embedded.
      depth: of the model.
      tied: whether rows at different depths may share a tile.
    """

    params: PyTree
    batches: list[Rows]
    step: Any
    state: PyTree
    depth: Any
    tied: bool

    @classmethod
    def of(
        cls, experiment: Experiment, params: PyTree, inputs: Rows, chosen: Any, size: int
    ) -> "Stand":
        """Reads and prepares the rows `chosen`, in batches of `size`."""
        model, prepare = experiment.model, jax.jit(lambda rows: prepared(experiment, rows))
        rows = jax.tree.map(np.asarray, prepare(taken_rows(inputs, chosen)))
        batches = latency.in_batches(rows, size)
        step, state = model.steps(params), jax.jit(model.embed)(params, batches[0])
        tied = not isinstance(step, tuple) and is_tied(step, state)
        return cls(params, batches, step, state, model.depth, tied)


def _tune(stand: Stand | None, choice: Choice, criterion: Criterion) -> Tuned:
    """Tunes for the exits of the calibration split; on the process that measures time."""
    assert stand is not None
    rows_at = np.rint(choice.exit_fraction * choice.rows).astype(int)
    exits = np.repeat(np.arange(len(rows_at)), rows_at)
    return tune(stand.step, stand.state, stand.depth, exits, criterion=criterion)


def _here(array: Array) -> Array:
    """The copy on this process' first device."""
    return array.addressable_data(0)


def _row_shapes(examples: dict[str, Any]) -> list[tuple[int, ...]]:
    return [np.shape(leaf)[1:] for leaf in jax.tree.leaves(examples["inputs"])]


def _row_bytes(inputs: PyTree) -> int:
    leaves = jax.tree.leaves(inputs)
    return sum(math.prod(leaf.shape[1:]) * leaf.dtype.itemsize for leaf in leaves)
