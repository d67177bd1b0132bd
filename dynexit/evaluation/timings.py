"""Seconds of full and of dynamic depth on the test split, side by side in one run."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.calibration.curve import Curve
from dynexit.core.settings import Evaluation
from dynexit.core.shapes import Array, Float, Int, PyTree, Rows, Shaped
from dynexit.core.types import Experiment
from dynexit.engine.tuning.tune import Tuned
from dynexit.evaluation import latency
from dynexit.evaluation.costs import RowCosts
from dynexit.evaluation.curves import spread
from dynexit.evaluation.latency import Ran, Timing

TIMED_BYTES = 2**28  # inputs of all timed batches
FEW = 8  # batches that contenders and curve points are timed on


class Timings(NamedTuple):
    """Seconds for the timed rows of the test split, all in one interleaved run.

    Attributes:
      rows: rows timed: the split, or the requested number of them in whole batches, evenly
        spread; the last batch is padded with the first of them.
      tile: rows of the fastest full-depth program's tiles; None for the whole batch.
      full, compacted, masked: seconds.
      streamed: seconds of `run_stream` with all rows in one queue, where the weights are tied; else
        None.
      together: seconds if all rows exit at one exit near the mean depth: exits are read and the
        criterion is evaluated as before, and no row is moved or waited for.
      together_ratio: FLOPs of the blocks up to there, as a fraction of all blocks.
      contenders: seconds of all full-depth programs on the first batches; the fastest is used.
      block_ratio: FLOPs of the blocks that the timed rows needed, as a fraction of all blocks.
    """

    rows: int
    tile: int | None
    full: Timing
    compacted: Timing
    masked: Timing
    streamed: Timing | None
    together: Timing
    together_ratio: float
    contenders: dict[str, Timing]
    block_ratio: float

    @property
    def full_program(self) -> str:
        """Name of the fastest full-depth program among the contenders."""
        return named(self.tile)

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
        """The same for the masked executor."""
        return self.ideal / self.masked.median

    @property
    def efficiency_streamed(self) -> float | None:
        """The same for the stream."""
        return None if self.streamed is None else self.ideal / self.streamed.median

    @property
    def ceiling(self) -> float:
        """The efficiency of all rows at one exit: the limit of any executor with these exits."""
        return self.full.median * self.together_ratio / self.together.median


class TimedPoints(NamedTuple):
    """Some points of the curve, timed in one run beside full depth.

    Attributes:
      index: int64 `[P]`, indices into the points of the curve.
      speedup: float64 `[P]`, seconds of full depth / seconds at the point.
      seconds: float64 `[P]`, per row.
      full: seconds per row of full depth.
      streamed: float64 `[P]`, seconds per row of `run_stream`, where the weights are tied; else
        None.
      block_ratio: float64 `[P]`, FLOPs of the blocks that the timed rows needed, as a fraction of
        all blocks.
    """

    index: Int[np.ndarray, "P"]  # pyright: ignore[reportIncompatibleMethodOverride]  not tuple's
    speedup: Float[np.ndarray, "P"]
    seconds: Float[np.ndarray, "P"]
    full: float
    streamed: Float[np.ndarray, "P"] | None
    block_ratio: Float[np.ndarray, "P"]

    @property
    def efficiency_streamed(self) -> Float[np.ndarray, "P"] | None:
        """float64 `[P]`: 1 where the stream's throughput follows the mean depth."""
        return None if self.streamed is None else self.full * self.block_ratio / self.streamed


class Programs(NamedTuple):
    """Compiled calls on one batch of prepared inputs.

    Attributes:
      full: by the rows of its tiles, None for the whole batch.
      dynamic, masked: by an operating point.
      streamed: on several batches at once; None where the weights are not tied.
      together: takes the exit of all rows and the rows of a tile.
    """

    full: dict[int | None, Callable[[Rows], Shaped[Array, "B ..."]]]
    dynamic: Callable[[PyTree, Rows], Ran]
    masked: Callable[[PyTree, Rows], Ran]
    streamed: Callable[[PyTree, Rows], Ran] | None
    together: Callable[[PyTree, Rows, int, int | None], Shaped[Array, "B ..."]]


def named(tile: int | None) -> str:
    """The name of the full-depth program in tiles of so many rows: "full" or "full tiled T"."""
    return "full" if tile is None else f"full tiled {tile}"


def programs(
    experiment: Experiment,
    params: PyTree,
    batch_size: int,
    tuned: Tuned | None = None,
    tied: bool = False,
) -> Programs:
    """The programs compared: full depth, whole and in tiles, and the dynamic programs.

    The dynamic ones are tuned, masked, streamed (if tied), and all rows at one exit.
    """
    model, method = experiment.model, experiment.method
    tiles = [
        None,
        *(tile for tile in latency.TILES if tile < batch_size and batch_size % tile == 0),
    ]
    full = {
        tile: jax.jit(lambda p, x, t=tile: latency.full_depth(model, method, p, x, t))
        for tile in tiles
    }
    chosen = executor_of(tuned)
    run = jax.jit(
        lambda p, operating_point, x: latency.dynamic_depth(
            model, method, p, operating_point, x, *chosen
        )
    )
    masked = jax.jit(
        lambda p, operating_point, x: latency.dynamic_depth(
            model, method, p, operating_point, x, "masked"
        )
    )
    stream = jax.jit(
        lambda p, operating_point, x: latency.streamed_depth(model, method, p, operating_point, x)
    )
    together = jax.jit(
        functools.partial(latency.depth_together, model, method), static_argnames="tile"
    )
    return Programs(
        {tile: lambda x, f=f: f(params, x) for tile, f in full.items()},
        lambda operating_point, x: run(params, operating_point, x),
        lambda operating_point, x: masked(params, operating_point, x),
        (lambda operating_point, x: stream(params, operating_point, x)) if tied else None,
        lambda operating_point, x, exit, tile: together(
            params, operating_point, x, jnp.int32(exit), tile=tile
        ),
    )


def executor_of(tuned: Tuned | None) -> tuple[Any, Any]:
    """Executor and tiles of the dynamic program; the engine's defaults without tuning."""
    return ("auto", None) if tuned is None else (tuned.executor, tuned.tile)


def timed_rows(rows: int, evaluation: Evaluation, row_bytes: int = 0) -> Int[np.ndarray, "m"]:
    """Indices of the rows that are timed: all, or whole batches of them.

    Rows are evenly spread, because a split may be in order of difficulty. Timed batches are on the
    device, so they take at most `TIMED_BYTES`, or one batch.

    Example:
      >>> timed_rows(10, Evaluation(batch_size=2, timed_rows=3)).tolist()
      [0, 2, 5, 7]
    """
    size = evaluation.batch_size
    wanted = rows if evaluation.timed_rows is None else -(-evaluation.timed_rows // size) * size
    if row_bytes * min(wanted, rows) > TIMED_BYTES:
        wanted = max(1, TIMED_BYTES // (row_bytes * size)) * size
    return np.arange(rows) if wanted >= rows else np.arange(wanted) * rows // wanted


def time_all(
    calls: Programs,
    operating_point: PyTree,
    batches: list[Rows],
    evaluation: Evaluation,
    costs: RowCosts,
    exits: Int[np.ndarray, "m"],
) -> Timings:
    """Times full depth and the executors on all timed batches, whose rows exit at `exits`."""
    few = batches[:FEW]
    contenders = latency.measure(
        {named(t): lambda t=t: [calls.full[t](x) for x in few] for t in calls.full}, repeats=3
    )
    tile = min(calls.full, key=lambda t: contenders[named(t)].median)
    until = np.cumsum(costs.blocks) / costs.blocks.sum()
    ratio = float(np.mean(until[exits]))
    near = int(np.argmin(np.abs(until - ratio)))
    compared: dict[str, Callable[[], Any]] = {
        "full": lambda: [calls.full[tile](x) for x in batches],
        "compacted": lambda: [calls.dynamic(operating_point, x) for x in batches],
        "masked": lambda: [calls.masked(operating_point, x) for x in batches],
        "together": lambda: [calls.together(operating_point, x, near, tile) for x in batches],
    }
    if calls.streamed is not None:
        stream, queue = calls.streamed, jax.tree.map(lambda *a: jnp.concatenate(a), *batches)
        compared["streamed"] = lambda: stream(operating_point, queue)
    timing = latency.measure(compared, evaluation.repeats)
    dynamic = timing["compacted"], timing["masked"], timing.get("streamed")
    together = timing["together"], float(until[near])
    return Timings(len(exits), tile, timing["full"], *dynamic, *together, contenders, ratio)


def time_points(
    calls: Programs,
    points: PyTree,
    drawn: Curve,
    batches: list[Rows],
    evaluation: Evaluation,
    costs: RowCosts,
    tile: int | None,
) -> TimedPoints:
    """Times some points of the curve on the first batches, beside full depth in tiles."""
    index = spread(drawn.cost, 8)
    few = batches[:FEW]
    queue = jax.tree.map(lambda *a: jnp.concatenate(a), *few)
    rows = len(jax.tree.leaves(queue)[0])
    until = np.cumsum(costs.blocks) / costs.blocks.sum()
    every: dict[str, Callable[[], Any]] = {"full": lambda: [calls.full[tile](x) for x in few]}
    ran: dict[int, list[Ran]] = {}

    def dynamic(k: int, operating_point: PyTree) -> list[Ran]:
        ran[k] = [calls.dynamic(operating_point, x) for x in few]
        return ran[k]

    for k in index.tolist():
        one = jax.tree.map(lambda a, k=k: jnp.asarray(a[k]), points)
        every[str(k)] = functools.partial(dynamic, k, one)
        if calls.streamed is not None:
            every[f"{k} streamed"] = lambda one=one, stream=calls.streamed: stream(one, queue)
    timing = latency.measure(every, max(1, evaluation.repeats // 2))
    seconds = np.array([timing[str(k)].median for k in index])
    streamed = (
        None
        if calls.streamed is None
        else np.array([timing[f"{k} streamed"].median for k in index]) / rows
    )
    full = timing["full"].median
    left = [
        np.searchsorted(costs.depths, np.concatenate([r.exit_depth for r in ran[k]])) for k in index
    ]
    ratio = np.array([until[exits].mean() for exits in left])
    return TimedPoints(index, full / seconds, seconds / rows, full / rows, streamed, ratio)
