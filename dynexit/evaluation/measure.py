"""A trained network at its operating point on the test split: what it answers, how deep it went,
how long it took.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.calibration.choose import Choice
from dynexit.calibration.curve import Curve, Predictions, curve
from dynexit.core.labels import exact
from dynexit.core.types import Experiment, PyTree
from dynexit.engine.replay import replay
from dynexit.engine.streaming.stream import is_tied
from dynexit.engine.tuning.tune import Tuned, tune
from dynexit.evaluation import latency
from dynexit.evaluation.costs import RowCosts, costs_of
from dynexit.evaluation.predictions import predict, prepared
from dynexit.evaluation.timings import (
    FEW,
    TimedPoints,
    Timings,
    programs,
    time_all,
    time_points,
    timed_rows,
)


class Evaluated(NamedTuple):
    """Everything that the report and the plots say.

    Attributes:
      predictions: every exit's outputs on the test split.
      costs: FLOPs per row.
      exit_classes: int32 `[E, M]`, what each exit would answer.
      classes: int32 `[M]`, what the dynamic program answered.
      exit: int64 `[M]`, where each row left.
      nan_exits: exits read with a NaN, over all rows.
      agreement: fraction of rows whose live answer and exit equal the replay of the stored outputs.
      timings, curve, timed: see there.
      tuned: schedule and tiles of the dynamic program, or None for the engine's defaults.
      score: the method's.
      steps: int `[M]`, the sequential steps that each example needs, where the data says; else
        None.
    """

    predictions: Predictions
    costs: RowCosts
    exit_classes: np.ndarray
    classes: np.ndarray
    exit: np.ndarray
    nan_exits: int
    agreement: float
    timings: Timings
    curve: Curve
    timed: TimedPoints
    tuned: Tuned | None
    score: Callable[[Any, Any], Any] = exact
    steps: np.ndarray | None = None


def evaluate(
    experiment: Experiment,
    params: PyTree,
    costs: RowCosts,
    choice: Choice,
    points: PyTree,
    evaluation: Any,
    log: Callable[[str], None],
) -> Evaluated:
    """Measures the test split.

    Args:
      experiment: what was trained.
      params: its parameters.
      costs: FLOPs per row, of `costs_of`, for inputs of the calibration split; counted anew where
        those of the test split have another shape.
      choice: the operating point that calibration chose; the exits that rows took there are what
        tiles are tuned for.
      points: all candidate points, leaves `[K, ...]`; only drawn, never chosen from.
      evaluation: `core.settings.Evaluation`.
      log: gets a line for every phase.
    """
    operating_point = choice.operating_point
    log("test split: every exit")
    predictions = predict(experiment, params, experiment.test, evaluation.batch_size)
    inputs = jax.tree.map(
        np.asarray, jax.jit(lambda x: prepared(experiment, x))(experiment.test.examples()["inputs"])
    )
    if _row_shapes(inputs) != _row_shapes(experiment.calibration.examples()["inputs"]):
        few = jax.tree.map(lambda a: jnp.asarray(a[:FEW]), inputs)
        costs = costs_of(
            experiment.model, params, few, experiment.method.criterion(operating_point)
        )
    batches = latency.in_batches(inputs, evaluation.batch_size)
    chosen = timed_rows(len(jax.tree.leaves(inputs)[0]), evaluation)
    timed_batches = latency.in_batches(
        jax.tree.map(lambda a: a[chosen], inputs), evaluation.batch_size
    )
    exit_classes = np.asarray(jax.jit(jax.vmap(experiment.method.predict))(predictions.outputs))
    drawn = curve(
        predictions,
        points,
        experiment.method.criterion,
        experiment.method.predict,
        costs.until,
        replay,
        experiment.method.score,
    )

    tuned, step, state = (
        None,
        experiment.model.steps(params),
        jax.jit(experiment.model.embed)(params, batches[0]),
    )
    if evaluation.tune:
        log("tuning: what tiles of every size cost on this device")
        left_at = np.rint(choice.exit_fraction * choice.rows).astype(int)
        exits = np.repeat(np.arange(len(left_at)), left_at)
        tuned = tune(
            step,
            state,
            experiment.model.depth,
            exits,
            criterion=experiment.method.criterion(operating_point),
        )
        log(f"tuned: {tuned}")
    log(f"test split: timing full and dynamic depth side by side, {evaluation.repeats} times")
    tied = not isinstance(step, tuple) and is_tied(step, state)
    calls = programs(experiment, params, evaluation.batch_size, tuned, tied)
    ran = jax.tree.map(
        lambda *a: np.concatenate([np.atleast_1d(x) for x in a]),
        *[calls.dynamic(operating_point, x) for x in batches],
    )
    taken = np.searchsorted(costs.depths, ran.exit_depth)
    occupancy = float((taken + 1).sum() / ran.rows_executed.sum())
    timed_exits = np.resize(
        taken[chosen], len(timed_batches) * evaluation.batch_size
    )  # the last batch is filled up from the front
    timings = time_all(
        calls, operating_point, timed_batches, evaluation, costs, timed_exits, occupancy
    )
    log("test split: timing points along the curve")
    timed = time_points(calls, points, drawn, timed_batches, evaluation, costs, timings.tile)

    rows = len(predictions.labels)
    answered, taken = ran.classes[:rows], taken[:rows]
    again = jax.jit(
        lambda operating_point, outputs: replay(
            experiment.method.criterion(operating_point), outputs
        )
    )(operating_point, predictions.outputs)
    replayed = np.asarray(experiment.method.predict(again.output)), np.asarray(again.exit)
    agreement = float(np.mean(exact(replayed[0], answered) & (replayed[1] == taken)))
    nans = int(ran.nan_exits[:rows].sum())
    live, method = (answered, taken, nans, agreement), experiment.method
    needed = experiment.test.examples().get("steps")
    return Evaluated(
        predictions, costs, exit_classes, *live, timings, drawn, timed, tuned, method.score, needed
    )


def _row_shapes(inputs: PyTree) -> list[tuple[int, ...]]:
    return [np.shape(leaf)[1:] for leaf in jax.tree.leaves(inputs)]
