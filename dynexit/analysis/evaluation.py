"""A trained network at its operating point on the test split: what it answers, how deep it went, how long it took."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.analysis import latency
from dynexit.analysis.costs import RowCosts, costs_of
from dynexit.analysis.curves import spread
from dynexit.analysis.latency import Ran, Timing
from dynexit.analysis.predictions import predict, prepared
from dynexit.calibration.choose import Choice
from dynexit.calibration.curve import Curve, Predictions, curve
from dynexit.core.labels import exact
from dynexit.core.settings import Evaluation
from dynexit.core.types import Experiment, PyTree
from dynexit.exits.replay import replay
from dynexit.exits.stream import is_tied
from dynexit.exits.tune import Tuned, tune

FEW = 8  # batches that contenders and curve points are timed on


class Timings(NamedTuple):
    """Seconds for the timed rows of the test split, all in one interleaved run.

    Attributes:
      rows: rows timed: the split, or as many of it as were asked for in whole batches, evenly spread; a last batch is filled up
        with the first of them.
      full_program: name of the quickest full-depth program; "full" or "full tiled T".
      full, compacted, masked: seconds.
      streamed: seconds of `run_stream` with all rows as one queue, where the weights are tied; else None.
      contenders: all full-depth programs, seconds on the first batches, of which the quickest was taken.
      block_ratio: FLOPs of the blocks that the timed rows needed, as a fraction of all blocks.
      occupancy: rows x blocks that rows needed, as a fraction of those that the compacted schedule ran.
    """

    rows: int
    full_program: str
    full: Timing
    compacted: Timing
    masked: Timing
    streamed: Timing | None
    contenders: dict[str, Timing]
    block_ratio: float
    occupancy: float

    @property
    def ideal(self) -> float:
        """Seconds of full depth x fraction of block FLOPs needed."""
        return self.full.median * self.block_ratio

    @property
    def speedup(self) -> float:
        """Seconds of full depth / seconds of dynamic depth."""
        return self.full.median / self.compacted.median

    @property
    def efficiency(self) -> float:
        """Ideal seconds / seconds of dynamic depth."""
        return self.ideal / self.compacted.median

    @property
    def efficiency_masked(self) -> float:
        """The same for the masked schedule."""
        return self.ideal / self.masked.median

    @property
    def efficiency_streamed(self) -> float | None:
        """The same for the stream."""
        return None if self.streamed is None else self.ideal / self.streamed.median


class TimedPoints(NamedTuple):
    """Some points of the curve, timed in one run beside full depth.

    Attributes:
      index: int64 `[P]`, which points of the curve.
      speedup: float64 `[P]`, seconds of full depth / seconds at the point.
      seconds: float64 `[P]`, per row.
      full: seconds per row of full depth.
    """

    index: np.ndarray
    speedup: np.ndarray
    seconds: np.ndarray
    full: float


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
      grade: the method's.
      steps: int `[M]`, the sequential steps that each example needs, where the data says; else None.
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
    grade: Callable[[Any, Any], Any] = exact
    steps: np.ndarray | None = None


class Programs(NamedTuple):
    """Compiled calls on one batch of prepared inputs; `streamed` on several at once, or None where weights are not tied."""

    full: dict[str, Callable[[PyTree], jax.Array]]
    dynamic: Callable[[PyTree, PyTree], Ran]
    masked: Callable[[PyTree, PyTree], Ran]
    streamed: Callable[[PyTree, PyTree], Ran] | None


def programs(experiment: Experiment, params: PyTree, batch_size: int, tuned: Tuned | None = None, tied: bool = False) -> Programs:
    """The programs that are compared: full depth whole and in tiles, dynamic depth as tuned, masked and, if tied, streamed."""
    model, method = experiment.model, experiment.method
    full = {"full": jax.jit(lambda p, x: latency.full_depth(model, method, p, x))}
    for tile in latency.TILES:
        if tile < batch_size and batch_size % tile == 0:
            full[f"full tiled {tile}"] = jax.jit(lambda p, x, t=tile: latency.full_depth_tiled(model, method, p, x, t))
    chosen = ("auto", None) if tuned is None else (tuned.schedule, tuned.tile)
    run = jax.jit(lambda p, point, x: latency.dynamic_depth(model, method, p, point, x, *chosen))
    masked = jax.jit(lambda p, point, x: latency.dynamic_depth(model, method, p, point, x, "masked"))
    stream = jax.jit(lambda p, point, x: latency.streamed_depth(model, method, p, point, x))
    return Programs(
        {name: lambda x, f=f: f(params, x) for name, f in full.items()},
        lambda point, x: run(params, point, x),
        lambda point, x: masked(params, point, x),
        (lambda point, x: stream(params, point, x)) if tied else None,
    )


def evaluate(
    experiment: Experiment,
    params: PyTree,
    costs: RowCosts,
    choice: Choice,
    points: PyTree,
    evaluation: Any,
    say: Callable[[str], None],
) -> Evaluated:
    """Measures the test split.

    Args:
      experiment: what was trained.
      params: its parameters.
      costs: FLOPs per row, of `costs_of`, for inputs of the calibration split; counted anew where those of the test split have
        another shape.
      choice: the operating point that calibration chose; the exits that rows took there are what tiles are tuned for.
      points: all candidate points, leaves `[K, ...]`; only drawn, never chosen from.
      evaluation: `core.settings.Evaluation`.
      say: gets a line for every phase.
    """
    point = choice.point
    say("test split: every exit")
    predictions = predict(experiment, params, experiment.test, evaluation.batch_size)
    inputs = jax.tree.map(np.asarray, jax.jit(lambda x: prepared(experiment, x))(experiment.test.examples()["inputs"]))
    if _row_shapes(inputs) != _row_shapes(experiment.calibration.examples()["inputs"]):
        few = jax.tree.map(lambda a: jnp.asarray(a[:FEW]), inputs)
        costs = costs_of(experiment.model, params, few, experiment.method.criterion(point))
    batches = latency.in_batches(inputs, evaluation.batch_size)
    chosen = timed_rows(len(jax.tree.leaves(inputs)[0]), evaluation)
    timed_batches = latency.in_batches(jax.tree.map(lambda a: a[chosen], inputs), evaluation.batch_size)
    exit_classes = np.asarray(jax.jit(jax.vmap(experiment.method.predict))(predictions.outputs))
    drawn = curve(
        predictions, points, experiment.method.criterion, experiment.method.predict, costs.until, replay, experiment.method.grade
    )

    tuned, step, state = None, experiment.model.steps(params), jax.jit(experiment.model.embed)(params, batches[0])
    if evaluation.tune:
        say("tuning: what tiles of every size cost on this device")
        left_at = np.rint(choice.exit_fraction * choice.rows).astype(int)
        exits = np.repeat(np.arange(len(left_at)), left_at)
        tuned = tune(step, state, experiment.model.depth, exits, criterion=experiment.method.criterion(point))
        say(f"tuned: {tuned}")
    say(f"test split: timing full and dynamic depth side by side, {evaluation.repeats} times")
    tied = not isinstance(step, tuple) and is_tied(step, state)
    calls = programs(experiment, params, evaluation.batch_size, tuned, tied)
    ran = jax.tree.map(lambda *a: np.concatenate([np.atleast_1d(x) for x in a]), *[calls.dynamic(point, x) for x in batches])
    taken = np.searchsorted(costs.depths, ran.exit_depth)
    occupancy = float((taken + 1).sum() / ran.rows_executed.sum())
    timed_exits = np.resize(taken[chosen], len(timed_batches) * evaluation.batch_size)  # the last batch is filled up from the front
    timings = _time(calls, point, timed_batches, evaluation, costs, timed_exits, occupancy)
    say("test split: timing points along the curve")
    timed = _time_points(calls, points, drawn, timed_batches, evaluation, timings.full_program)

    rows = len(predictions.labels)
    answered, taken = ran.classes[:rows], taken[:rows]
    again = jax.jit(lambda point, outputs: replay(experiment.method.criterion(point), outputs))(point, predictions.outputs)
    replayed = np.asarray(experiment.method.predict(again.output)), np.asarray(again.exit)
    agreement = float(np.mean(exact(replayed[0], answered) & (replayed[1] == taken)))
    nans = int(ran.nan_exits[:rows].sum())
    live, method = (answered, taken, nans, agreement), experiment.method
    needed = experiment.test.examples().get("steps")
    return Evaluated(predictions, costs, exit_classes, *live, timings, drawn, timed, tuned, method.grade, needed)


def timed_rows(rows: int, evaluation: Evaluation) -> np.ndarray:
    """Which rows of the split are timed: all, or whole batches of them evenly spread, for a split may be in order of difficulty.

    Example:
      >>> timed_rows(10, Evaluation(batch_size=2, timed_rows=3)).tolist()
      [0, 2, 5, 7]
    """
    if evaluation.timed_rows is None:
        return np.arange(rows)
    wanted = min(rows, -(-evaluation.timed_rows // evaluation.batch_size) * evaluation.batch_size)
    return np.arange(wanted) * rows // wanted


def _row_shapes(inputs: PyTree) -> list[tuple[int, ...]]:
    return [np.shape(leaf)[1:] for leaf in jax.tree.leaves(inputs)]


def _time(calls: Programs, point, batches, evaluation, costs: RowCosts, exits: np.ndarray, occupancy: float) -> Timings:
    few = batches[:FEW]
    contenders = latency.measure({n: lambda f=f: [f(x) for x in few] for n, f in calls.full.items()}, repeats=3)
    best = min(contenders, key=lambda name: contenders[name].median)
    compared: dict[str, Callable[[], Any]] = {
        "full": lambda: [calls.full[best](x) for x in batches],
        "compacted": lambda: [calls.dynamic(point, x) for x in batches],
        "masked": lambda: [calls.masked(point, x) for x in batches],
    }
    if calls.streamed is not None:
        stream, queue = calls.streamed, jax.tree.map(lambda *a: jnp.concatenate(a), *batches)
        compared["streamed"] = lambda: stream(point, queue)
    timing = latency.measure(compared, evaluation.repeats)
    ratio = float(np.mean(np.cumsum(costs.blocks)[exits]) / costs.blocks.sum())
    dynamic = timing["compacted"], timing["masked"], timing.get("streamed")
    return Timings(len(exits), best, timing["full"], *dynamic, contenders, ratio, occupancy)


def _time_points(calls: Programs, points, drawn: Curve, batches, evaluation, full_program: str) -> TimedPoints:
    index = spread(drawn.cost, 8)
    few = batches[:FEW]
    rows = sum(len(jax.tree.leaves(x)[0]) for x in few)
    every: dict[str, Callable[[], Any]] = {"full": lambda: [calls.full[full_program](x) for x in few]}
    for k in index:
        one = jax.tree.map(lambda a, k=k: a[k], points)
        every[str(k)] = lambda one=one: [calls.dynamic(one, x) for x in few]
    timing = latency.measure(every, max(1, evaluation.repeats // 2))
    seconds = np.array([timing[str(k)].median for k in index])
    full = timing["full"].median
    return TimedPoints(index, full / seconds, seconds / rows, full / rows)
