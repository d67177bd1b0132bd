"""Stochastic depth: residual blocks dropped at random, and skipped if dropped for all rows."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dynexit.core.checks import positive_integer
from dynexit.core.shapes import Array, Bool, Float, PyTree
from dynexit.core.types import Step
from dynexit.engine import loops
from dynexit.engine.deferred import deferred_parts, deferred_readout
from dynexit.engine.rows import live_in_all, where_rows
from dynexit.engine.steps import Run, recomputed_part, rematerialised


def survival(depth: int, last: float) -> Float[Array, "N"]:
    """Survival probabilities of blocks, falling linearly with depth.

    p_l = 1 - (l / N) (1 - p_N) for l = 1..N. With p_N = 1/2, (3 N - 1) / 4 blocks are kept on
    average.

    Args:
      depth: N, at least 1.
      last: p_N, above 0 and at most 1.

    Returns:
      p, float32 `[N]`.

    Raises:
      TypeError: `depth` is not an integer.
      ValueError: `depth` is below 1, or `last` is out of range.

    Example:
      >>> survival(4, 0.5).tolist(), float(survival(54, 0.5).sum())
      ([0.875, 0.75, 0.625, 0.5], 40.25)

    Source: Huang et al. 2016, arXiv 1603.09382.
    """
    positive_integer(depth, "depth")
    if not 0 < last <= 1:
        raise ValueError(f"`last` must be above 0 and at most 1, got {last}")
    return 1 - jnp.arange(1, depth + 1, dtype=jnp.float32) / depth * (1 - last)


def dropped_blocks(
    step: Step, kept: Bool[Array, "N"] | Bool[Array, "N B"], scale: Float[Array, "N"]
) -> Step:
    """A step that drops or scales the residual of each block.

    s + kept_l scale_l (block_l(s) - s). The exits are unchanged. With scale = 1 / p in training,
    inference uses the plain network ("drop path"). The form of the paper is scale = 1 in training,
    and at inference all blocks kept with scale = p.

    Args:
      step: from `stacked_step` or `tied_step`, with one block per step. A block that changes the
        shape of the state is always kept and not scaled.
      kept: bool `[N]`, for all rows; a dropped block is not computed. Or bool `[N, B]`, per row,
        for runs of the whole batch (`run_all`, `run_full`); then every block is computed.
      scale: `[N]`, floating point.

    Returns:
      A `Step` on the same states with the same outputs.

    Raises:
      TypeError: `kept` is not bool.
      ValueError: the step is not from those functions or has several blocks per step; `kept` or
        `scale` has another shape, or another N than the step.

    Example:
      >>> import dynexit as dx
      >>> step = dx.stacked_step(lambda p, h: h + p, lambda p, h: h, jnp.array([1.0, 10.0, 100.0]))
      >>> half = dropped_blocks(step, jnp.array([True, False, True]), jnp.array([1.0, 1.0, 2.0]))
      >>> dx.run_all(half, jnp.zeros(1), depth=3)[:, 0].tolist()
      [1.0, 1.0, 201.0]

    Source: Huang et al. 2016, arXiv 1603.09382.
    """
    if parts := deferred_parts(step):
        return deferred_readout(dropped_blocks(parts[0], kept, scale), parts[1])
    if inner := recomputed_part(step):
        return rematerialised(dropped_blocks(inner, kept, scale))
    run = step.apply.func if isinstance(step.apply, Partial) else None
    if not isinstance(run, Run):
        raise ValueError(
            "`step` must be from `stacked_step` or `tied_step` with one block per step"
        )
    kept, scale = jnp.asarray(kept), jnp.asarray(scale)
    if kept.dtype != bool:
        raise TypeError(f"`kept` must be bool, got {kept.dtype}")
    blocks = step.depth or len(kept)
    if kept.ndim not in (1, 2) or len(kept) != blocks or scale.shape != (blocks,):
        raise ValueError(
            f"`kept` must have shape [N] or [N, B] and `scale` [N] with N = {blocks}, "
            f"got {list(kept.shape)} and {list(scale.shape)}"
        )
    return Step(Partial(_selected, step.select, kept, scale), Partial(_RunKept(run)), depth=blocks)


def _selected(select: Any, kept: Array, scale: Array, i: Array) -> tuple[PyTree, Array, Array]:
    return select(i), kept[i], scale[i]


@dataclasses.dataclass(frozen=True)
class _RunKept:
    run: Run

    def __call__(
        self, selected: tuple[PyTree, Array, Array], i: Array, state: PyTree
    ) -> tuple[PyTree, PyTree]:
        weights, kept, scale = selected
        shaped = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
        if shaped(jax.eval_shape(self.run.block, weights, state)) != shaped(state):
            state = self.run.block(weights, state)
        elif kept.ndim == 0:
            state = loops.maybe(
                kept, lambda s: scaled(scale, self.run.block(weights, s), s), lambda s: s, state
            )
        else:
            live = live_in_all(kept, state)
            state = where_rows(kept, scaled(scale, self.run.block(weights, live), live), state)
        return state, self.run.head(weights, state)


def scaled(scale: Float[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """old + scale (new - old), per leaf.

    Args:
      scale: a scalar.
      new, old: trees of equal structure and shapes.

    Returns:
      A tree as `new`; exactly `new` if scale is 1. Leaves that are not floating point are those of
      `new`.
    """

    def one(new: Array, old: Array) -> Array:
        return (
            new + (scale - 1).astype(new.dtype) * (new - old)
            if jnp.issubdtype(new.dtype, jnp.floating)
            else new
        )

    return jax.tree.map(one, new, old)
