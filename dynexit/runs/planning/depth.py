"""Occupancy and imbalance of dynamic depth on a mesh, at a distribution of depths."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynexit.core.shapes import Float
from dynexit.runs.planning.lines import Line
from dynexit.runs.planning.mesh import sizes_of
from dynexit.runs.planning.training import batch_shapes

DRAWS = 20


def depth_plan(
    experiment: Any, settings: Any, histogram: Sequence[float], source: str
) -> list[Line]:
    """Occupancy and imbalance of dynamic depth at a distribution of depths.

    Args:
      experiment: built from the settings.
      settings: of the run; rows on each device are those of evaluation.
      histogram: how often a row takes each exit.
      source: where it is from.
    """
    import jax

    from dynexit.bench.imbalance import formula, simulated
    from dynexit.core.stages import stages_of
    from dynexit.engine.executors.tiling import default_tiling
    from dynexit.evaluation.batches import prepared

    size, devices = settings.evaluation.batch_size, math.prod(sizes_of(settings.mesh))
    params = jax.eval_shape(experiment.model.init, jax.random.key(0))
    inputs = jax.eval_shape(
        lambda x: prepared(experiment, x), batch_shapes(experiment, size)["inputs"]
    )
    state, steps = jax.eval_shape(
        lambda p, x: (experiment.model.embed(p, x), experiment.model.steps(p)), params, inputs
    )
    stages = stages_of(steps, experiment.model.depth)
    if sum(stage.steps for stage in stages) != len(histogram):
        raise ValueError(
            f"`histogram` must have {sum(stage.steps for stage in stages)} exits, got "
            f"{len(histogram)}"
        )
    tiling = default_tiling(state, size, None, stages[0].step)
    share = np.asarray(histogram, float)
    drawn = f"drawn: {DRAWS} x {size} rows on each device; {source}"
    busiest, after = (simulated(share, size, devices, rebalance, DRAWS) for rebalance in ((), (1,)))
    mean = float(share @ np.arange(1, len(share) + 1) / share.sum())
    held = sum(math.prod(a.shape[1:]) * a.dtype.itemsize for a in jax.tree.leaves(state))
    saved = (busiest.busiest - after.waited) * mean * _block_flops(experiment, params, state)
    moved = held * size * float(share[1:].sum() / share.sum()) * (devices - 1) / devices
    return [
        Line("mean exit", mean, f"of {len(share)}", source),
        Line("occupancy of default tiles", occupancy(share, size, tiling.rows(size)), "", drawn),
        Line("busiest device over the mean", busiest.busiest, "", drawn),
        Line("the same by the formula", formula(share, size, devices), "", f"formula; {source}"),
        Line("the same, survivors redistributed once", after.waited, "", drawn),
        Line("state of a row", held, "bytes", "exact"),
        Line("sent by one redistribution", moved, "bytes", f"formula; {source}"),
        Line("FLOPs that it saves", max(0.0, saved), "FLOPs", drawn),
    ]


def _block_flops(experiment: Any, params: Any, state: Any) -> float:
    """FLOPs of the first step on all rows, without its head."""
    import jax.numpy as jnp

    from dynexit.core.cost import flops_of

    def block(params: Any, state: Any) -> Any:
        steps = experiment.model.steps(params)
        step = steps[0] if isinstance(steps, tuple) else steps
        return step.apply(step.select(jnp.int32(0)), jnp.int32(0), state)[0]

    return flops_of(block, params, state)


def occupancy(
    histogram: Float[np.ndarray, "E"], batch: int, rows: Any, draws: int = DRAWS
) -> float:
    """Rows x steps that rows need, as a fraction of those that tiles execute.

    Args:
      histogram: how often a row takes each exit.
      batch: rows B.
      rows: `[B + 1]`, rows that a step executes for 0..B live rows.
      draws: batches that are drawn.

    Example:
      >>> round(occupancy(np.array([1.0, 1.0]), 4, np.array([0, 4, 4, 4, 4])), 2)
      0.76
    """
    random, share = np.random.default_rng(0), histogram / histogram.sum()
    needed, executed = 0, 0
    for _ in range(draws):
        exits = random.choice(len(share), batch, p=share)
        live = [int((exits >= exit).sum()) for exit in range(len(share))]
        needed, executed = needed + sum(live), executed + int(np.asarray(rows)[live].sum())
    return needed / executed


def with_mean(mean: float, exits: int) -> Float[np.ndarray, "E"]:
    """A geometric distribution over exits 1..E, cut off at E, with a given mean.

    Raises:
      ValueError: `mean` is not between 1 and E.

    Example:
      >>> share = with_mean(2.0, 4)
      >>> round(float(share @ np.arange(1, 5)), 3)
      2.0
    """
    if not 1 <= mean <= exits:
        raise ValueError(f"`mean` must be between 1 and the {exits} exits, got {mean:g}")

    def share(stay: float) -> Float[np.ndarray, "E"]:
        each = (1 - stay) * stay ** np.arange(exits)
        return np.append(each[:-1], stay ** (exits - 1))

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        below = share(middle) @ np.arange(1, exits + 1) < mean
        low, high = (middle, high) if below else (low, middle)
    return share((low + high) / 2)
