"""`tune`: measures the costs of tiles on a device and chooses tile sizes and an executor.

The time of a block with n live rows is, to a good approximation, the sum of the costs c(s) of its
tiles. c is measured with the engine itself, for tiles of 1, 2, 4, ... rows and of the whole batch.
From c follow the cheapest plan for every n (`tiling.py`), the few sizes that are worth compiling,
and the time of every executor:

    compacted   sum over blocks of plan(n_i)        n_i rows live at block i
    masked      (deepest exit) c(B)
    per_row     sum over blocks of n_i c(1)
"""

import functools
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from dynexit.core.checks import batch_size
from dynexit.core.meshes import on_auto_axes
from dynexit.core.shapes import AnyArray, Array, Int, PyTree, Rows
from dynexit.core.stages import Depth, Stage, depth_of, stages_of
from dynexit.core.types import Criterion, Memory, Step
from dynexit.engine.deferred import partition, read_throughout
from dynexit.engine.executors.compacted import all_live, plan_for, run_loop, run_once
from dynexit.engine.executors.tiling import Tiling, choose_sizes
from dynexit.engine.rows import Job, begin
from dynexit.engine.run import run_until, walk
from dynexit.engine.tuning import tune_cache

# small tiles are timed on this many rows, so that the weights are read about once
MEASURED_ROWS = 16
DRAWS = 32  # batches drawn from the given exits


class Tuned(NamedTuple):
    """The choice of `tune` and the times it expects.

    Attributes:
      executor: "compacted", "masked" or "per_row", for `run_until`.
      tile: one tiling per stage, for `run_until`.
      seconds: expected seconds per batch of every executor and of "full" depth; blocks and exits
        only.
      costs: for every stage, the measured seconds of one tile by its number of rows.
      origin: the origin of the costs: "measured", "cache" or "given".
    """

    executor: str
    tile: tuple[Tiling, ...]
    seconds: dict[str, float]
    costs: tuple[dict[int, float], ...]
    origin: str = "measured"

    def __str__(self) -> str:
        sizes = ", ".join("/".join(map(str, t.sizes)) for t in self.tile)
        expected = ", ".join(f"{name} {1e3 * s:.3g} ms" for name, s in self.seconds.items())
        origin = {"cache": "; costs from the cache", "given": "; costs as given"}.get(
            self.origin, ""
        )
        return f"{self.executor}, tiles of {sizes} rows; expected per batch: {expected}{origin}"


def tune(
    step: Step | Sequence[Step],
    state: Rows,
    depth: Depth = None,
    exits: Int[AnyArray, "M"] | None = None,
    sizes: Sequence[int] | None = None,
    repeats: int = 3,
    cache: str | os.PathLike[str] | None = None,
    costs: Sequence[dict[int, float]] | None = None,
    criterion: Criterion | None = None,
) -> Tuned:
    """Measures a step on this device and chooses the fastest executor and tiles.

    Args:
      step, state, depth: as for `run_until`, with concrete arrays; B is the batch size to tune for.
      exits: int `[M]`, the exits of examples (`replay(criterion, outputs).exit` on held-out data);
        None for live row counts of 1..B with equal probability.
      sizes: tile sizes to try; None for 1, 2, 4, ... and B, or for those of `costs`.
      repeats: number of timings of each size; the shortest time counts.
      cache: a JSON file of measured costs. If it has costs for the same step, depth, batch and
        sizes from a device of the same kind with as many cores and the same version of JAX, nothing
        is measured. Otherwise the costs are measured and added. A file that cannot be read is
        overwritten, with a warning.
      costs: `Tuned.costs` of an earlier call on the same step and batch; nothing is measured.
      criterion: the criterion of later runs; the entries of a `deferred_readout` that it does not
        read are not measured. None for a criterion that reads every entry at every exit.

    Returns:
      `Tuned`, whose `executor` and `tile` are arguments of `run_until`.

    Raises:
      TypeError, ValueError: as `run_until`; `tune` is called while tracing, `exits` is out of
        range, `sizes` is outside 1..B, `repeats` is below 1, `cache` is not the path of a file,
        `costs` does not match the step and batch, or both are given.

    Example:
      >>> import dynexit as dx
      >>> step = dx.stacked_step(lambda p, h: jnp.tanh(h @ p), lambda p, h: h, jnp.ones((3, 4, 4)))
      >>> tuned = dx.tune(step, jnp.ones((6, 4)), depth=3, sizes=(1, 6), repeats=1)
      >>> [sorted(costs) for costs in tuned.costs]
      [[1, 6]]
    """
    stages_of(step, depth)  # refuses a step that `partition` cannot handle
    depth = depth_of(step, depth)
    if not isinstance(criterion, Criterion | None):
        raise TypeError(
            f"`criterion` must be a dx.Criterion or None, got {type(criterion).__name__}"
        )
    step = read_throughout(
        step if criterion is None else partition(step, depth, state, criterion)[0]
    )
    stages, batch = stages_of(step, depth), batch_size(state)
    spaces, _ = walk(stages, state)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((step, state))):
        raise TypeError(
            "`step` and `state` must be concrete arrays: `tune` measures time, so call it outside "
            "of jax.jit"
        )
    total = stages[-1].first + stages[-1].steps
    if repeats < 1:
        raise ValueError(f"`repeats` must be at least 1, got {repeats}")
    if cache is not None and costs is not None:
        raise ValueError(
            "`cache` and `costs` must not both be given: given costs are not read from a file or "
            "written to one"
        )
    live = _live_counts(exits, total, batch)
    if costs is not None:
        chosen, origin = _given(costs, sizes, len(stages), batch), "given"
    else:
        chosen, origin = _known_or_measured(
            stages, state, spaces, batch, _tried(sizes, batch), repeats, cache
        )
    within = lambda stage: live[:, stage.first : stage.first + stage.steps]
    tilings = tuple(
        choose_sizes(c, batch, within(stage)) for stage, c in zip(stages, chosen, strict=True)
    )
    expected = _expected(stages, chosen, tilings, live, batch)
    executor = min((name for name in expected if name != "full"), key=lambda name: expected[name])
    return Tuned(executor, tilings, expected, chosen, origin)


def _tried(sizes: Sequence[int] | None, batch: int) -> list[int]:
    tried = (
        sorted({2**k for k in range(batch.bit_length())} | {batch})
        if sizes is None
        else sorted({int(s) for s in sizes})
    )
    if not tried or tried[0] < 1 or tried[-1] > batch:
        raise ValueError(f"`sizes` must be within 1..{batch}, the batch size, got {sizes}")
    return tried


def _given(
    costs: Any, sizes: Sequence[int] | None, stages: int, batch: int
) -> tuple[dict[int, float], ...]:
    """Costs of an earlier call, checked and restricted to `sizes`."""
    if (
        not isinstance(costs, (tuple, list))
        or not all(isinstance(c, dict) and c for c in costs)
        or len(costs) != stages
    ):
        raise ValueError(
            f"`costs` must be `Tuned.costs`, seconds by rows of a tile for each of the {stages} "
            f"stages, got {costs!r}"
        )
    for c in costs:
        if min(c) < 1 or max(c) > batch or not all(math.isfinite(s) and s > 0 for s in c.values()):
            raise ValueError(
                f"`costs` must be positive seconds of tiles of 1..{batch} rows, the batch size, "
                f"got {c}"
            )
        if missing := sorted({int(s) for s in sizes or ()} - set(c)):
            raise ValueError(f"`costs` must contain all `sizes`, got none for {missing}")
    tried = lambda c: sorted(c) if sizes is None else _tried(sizes, batch)
    return tuple({size: float(c[size]) for size in tried(c)} for c in costs)


def _known_or_measured(
    stages: tuple[Stage, ...],
    state: PyTree,
    spaces: tuple[PyTree, ...],
    batch: int,
    sizes: list[int],
    repeats: int,
    cache: str | os.PathLike[str] | None,
) -> tuple[tuple[dict[int, float], ...], str]:
    """Costs by stage, and their origin."""
    path = None if cache is None else tune_cache.checked_path(cache)
    key = "" if path is None else tune_cache.key_of(stages, (state, *spaces[:-1]), batch, sizes)
    if path is not None and (known := tune_cache.read(path, key, sizes)):
        return known, "cache"
    costs = tuple(
        _measure(stage, s, batch, sizes, repeats)
        for stage, s in zip(stages, _entering(stages, state), strict=True)
    )
    if path is not None:
        tune_cache.write(path, key, costs)
    return costs, "measured"


def _live_counts(exits: Any, total: int, batch: int) -> np.ndarray:
    """Numbers of live rows at every step of random batches: int64 `[draws, E]`."""
    if exits is None:
        return np.repeat(np.linspace(batch, 1, DRAWS).round().astype(int)[:, None], total, axis=1)
    exits = np.asarray(exits).reshape(-1)
    if (
        exits.size == 0
        or not np.issubdtype(exits.dtype, np.integer)
        or exits.min() < 0
        or exits.max() >= total
    ):
        raise ValueError(
            f"`exits` must be integers within 0..{total - 1}, at least one, got "
            f"{exits.dtype}{list(exits.shape)}"
        )
    drawn = np.random.default_rng(0).choice(exits, (DRAWS, batch))
    return (drawn[:, :, None] >= np.arange(total)).sum(axis=1)


def _entering(stages: tuple[Stage, ...], state: PyTree) -> list[PyTree]:
    """The state of all rows before every stage."""
    never = Criterion(_nothing, _stay)
    states = [state]
    for stage in stages[:-1]:
        depth = stage.steps * stage.step.blocks
        states.append(run_until(stage.step, states[-1], depth, never, executor="masked").state)
    return states


def _nothing(i: Any, output: PyTree, memory: PyTree) -> tuple[PyTree, PyTree]:
    return jnp.zeros(jax.tree.leaves(output)[0].shape[0], bool), memory


def _stay(i: Any, score: PyTree, memory: PyTree) -> tuple[PyTree, PyTree]:
    return score, memory


def _measure(
    stage: Stage, state: PyTree, batch: int, sizes: Sequence[int], repeats: int
) -> dict[int, float]:
    """Seconds of one tile of each size, including the overhead of the engine.

    They do not decrease with the size.
    """
    calls: dict[int, tuple[Callable[..., Any], int]] = {}
    falling = tuple(sorted(sizes, reverse=True))
    depth = stage.steps * stage.step.blocks
    for size in sizes:
        tiles = max(1, min(MEASURED_ROWS, batch) // size)
        ends = [tiles * size if other <= size else 0 for other in falling]
        ends = jax.device_put(np.array(ends, np.int32))

        def run(ends: Array = ends) -> Any:
            tiles = lambda state, step: _in_tiles(step, state, ends, depth, falling)
            return on_auto_axes(tiles, state, stage.step)

        calls[size] = run, tiles * stage.steps
        jax.block_until_ready(run())
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(repeats):
        for size, (run, tiles) in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[size].append((time.perf_counter() - start) / tiles)
    medians = np.maximum.accumulate([min(seconds[size]) for size in sizes])
    return {size: float(s) for size, s in zip(sizes, medians, strict=True)}


class _Given(NamedTuple):
    """Replaces a `Tiling`: the ends of the tiles are an argument of the program."""

    sizes: tuple[int, ...]
    given: Array

    def ends(self, live: Array, batch: int) -> Array:
        return self.given


@functools.partial(jax.jit, static_argnames=("depth", "sizes"))
def _in_tiles(
    step: Step, state: PyTree, ends: Array, depth: int, sizes: tuple[int, ...]
) -> tuple[PyTree, Array]:
    """All steps on the first `ends[-1]` rows, in tiles of the given sizes that end at `ends`.

    No row exits before the last exit. `ends` is int32 and traced, so that one program serves all
    measurements.
    """
    (stage,) = stages_of(step, depth)
    _, output = walk((stage,), state)
    batch, never = batch_size(state), Criterion(_nothing, _stay)
    (plan,), places = plan_for(batch, output, [Tiling(sizes, (1.0,) * len(sizes))])
    carry = all_live(begin(state, output, Memory((), ()), batch, stage.steps), plan.few, places)
    job = Job(never, stage.steps - 1, batch)
    carry = carry._replace(alive=ends[-1])
    plan = plan._replace(tiling=_Given(sizes, ends))
    run = run_once if stage.steps == 1 else run_loop
    carry = run(stage, job, carry, walk((stage,), state)[0][0], plan)
    return carry.exited.output, carry.executed


def _expected(
    stages: tuple[Stage, ...],
    costs: tuple[dict[int, float], ...],
    tilings: tuple[Tiling, ...],
    live: np.ndarray,
    batch: int,
) -> dict[str, float]:
    """Expected seconds per batch by executor, averaged over the random batches."""
    seconds: dict[str, float] = dict.fromkeys(("compacted", "masked", "per_row", "full"), 0.0)
    for stage, cost, tiling in zip(stages, costs, tilings, strict=True):
        n = live[:, stage.first : stage.first + stage.steps]
        whole = cost[max(cost)] * batch / max(cost)
        seconds["compacted"] += float(tiling.seconds(batch)[n].sum(axis=1).mean())
        seconds["masked"] += float((n > 0).sum(axis=1).mean()) * whole
        seconds["per_row"] += float(n.sum(axis=1).mean()) * cost[min(cost)] / min(cost)
        seconds["full"] += stage.steps * whole
    return seconds
