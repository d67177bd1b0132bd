"""A criterion on stored outputs, and many operating points on stored scores.

Thresholds are compared without running the network again.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dynexit.core.checks import batch_size, shapes
from dynexit.core.meshes import on_auto_axes
from dynexit.core.shapes import AnyArray, Array, Bool, ExitRows, Int, PyTree
from dynexit.core.stacking import length
from dynexit.core.types import Criterion, Halted
from dynexit.criteria.memory import check_exits, checked, first_memory
from dynexit.engine.counts import summed
from dynexit.engine.rows import decide_exit, read_exit, where_rows

TOGETHER = 8  # operating points whose decisions are held at the same time


def replay(criterion: Criterion, outputs: ExitRows) -> Halted:
    """The exits and outputs of `run_until`, from the outputs of `run_all`.

    Args:
      criterion: when a row exits.
      outputs: leaves `[E, B, ...]`.

    Returns:
      `Halted` with an empty `state`; one exit counts as one block in `exit_depth`, and
      `rows_executed` is what a perfect executor would run, the sum of the depths.

    Raises:
      TypeError: `criterion` is not a `dx.Criterion`.
      ValueError: no exits, an empty batch, or a criterion for another number of exits or batch
        size.

    Example:
      >>> import dynexit as dx
      >>> logits = jnp.array([[[0.1, 0.0]], [[5.0, 0.0]], [[9.0, 0.0]]])  # [E=3, B=1, C=2]
      >>> dx.replay(dx.criteria.max_probability_above(0.9), logits).exit
      Array([1], dtype=int32)
    """
    if not isinstance(criterion, Criterion):
        raise TypeError(f"`criterion` must be a dx.Criterion, got {type(criterion).__name__}")
    run = lambda outputs, criterion: _replay(criterion, outputs)
    return on_auto_axes(run, outputs, criterion, axis=1)


def replay_scores(
    criterion: Callable[[PyTree], Criterion],
    points: PyTree,
    scores: ExitRows,
    nan: Bool[AnyArray, "E M"] | None = None,
) -> Int[Array, "K M"]:
    """The exit of every row at every operating point, from stored scores: `decide` alone runs.

    It holds the scores, the result and the decisions of a few points in memory, for any K and any
    size of the outputs.

    Args:
      criterion: `criterion(point) -> Criterion`; static, so pass the same function each time. Its
        score must be the one of the stored scores at every point.
      points: leaves `[K, ...]`.
      scores: what `criterion.score` gave at every exit, leaves `[E, M]` or `[E, M, small]`.
      nan: bool `[E, M]`, exits whose output held a NaN, at which the row does not exit; None for
        none.

    Returns:
      int32 `[K, M]`, in 0..E-1.

    Raises:
      ValueError: no scores or points, or a criterion for another number of exits.

    Example:
      >>> import dynexit as dx
      >>> scores = jnp.array([[0.6, 0.9], [0.8, 0.95], [0.99, 0.99]])  # [E=3, M=2]
      >>> thresholds = jnp.array([0.5, 0.7])
      >>> dx.replay_scores(dx.criteria.max_probability_above, thresholds, scores).tolist()
      [[0, 0], [1, 0]]
    """
    return _replay_scores(criterion, points, scores, nan)


@functools.partial(jax.jit, static_argnums=0)
def _replay_scores(
    criterion: Callable[[PyTree], Criterion], points: PyTree, scores: PyTree, nan: Any
) -> Array:
    exits = length(scores, "scores")
    rows = batch_size(jax.tree.map(lambda a: a[0], scores), "scores[0]")
    if length(points, "points") == 0 or exits == 0:
        raise ValueError("`points` and `scores` must not be empty")
    nan = jnp.zeros((exits, rows), bool) if nan is None else nan

    def one(point: PyTree) -> Array:
        rule = criterion(point)
        check_exits(rule, exits)

        def body(carry: Any, x: Any) -> tuple[Any, None]:
            exit, alive, memory = carry
            i, score, nan = x
            fires, new = decide_exit(rule, i, i == exits - 1, score, memory, nan)
            exit = jnp.where(alive, i, exit)
            return (exit, alive & ~fires, where_rows(alive, new, memory)), None

        start = (
            jnp.zeros(rows, jnp.int32),
            jnp.ones(rows, bool),
            checked(rule.init_decide(rows), rows),
        )
        steps = jnp.arange(exits, dtype=jnp.int32), scores, nan
        return lax.scan(body, start, steps)[0][0]

    return lax.map(one, points, batch_size=TOGETHER)


@jax.jit
def _replay(criterion: Criterion, outputs: PyTree) -> Halted:
    exits = length(outputs, "outputs")
    if exits == 0:
        raise ValueError("`outputs` must have at least one exit on their leading axis, got 0")
    one = jax.tree.map(lambda a: a[0], outputs)
    batch = batch_size(one, "outputs[0]")
    memory = first_memory(criterion, batch, shapes(one), exits)

    def body(carry: Any, x: Any) -> tuple[Any, None]:
        i, output = x
        kept, exit, alive, memory, nans = carry
        fires, new, nan = read_exit(criterion, i, i == exits - 1, output, memory)
        kept, memory = where_rows(alive, output, kept), where_rows(alive, new, memory)
        return (
            kept,
            jnp.where(alive, i, exit),
            alive & ~fires,
            memory,
            nans + (nan & alive).astype(jnp.int32),
        ), None

    start = (
        jax.tree.map(jnp.zeros_like, one),
        jnp.zeros(batch, jnp.int32),
        jnp.ones(batch, bool),
        memory,
        jnp.zeros(batch, jnp.int32),
    )
    (output, exit, _, memory, nans), _ = lax.scan(
        body, start, (jnp.arange(exits, dtype=jnp.int32), outputs)
    )
    return Halted(output, exit, exit + 1, (), memory, nans, summed(exit + 1, batch * exits))
