"""Checks of steps that the user wrote, before anything is compiled."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.checks import (
    batch_size,
    describe,
    described,
    shapes,
)
from dynexit.core.meshes import on_auto_axes
from dynexit.core.shapes import Array, PyTree, Rows, Size
from dynexit.core.stages import Stage
from dynexit.core.types import Step


def check_step(
    stage: Stage, state: PyTree, name: str = "step", side: PyTree = None
) -> tuple[PyTree, PyTree]:
    """Shapes of the state and output that a stage's step returns for `state`, traced and not run.

    Raises:
      TypeError, ValueError: the step returned no pair, a leaf lost its row axis, or the state of a
        stage of several steps changed structure, shape or dtype; the leaf is named. Likewise with
        `side`.
    """
    rows = batch_size(state)
    result = _traced(stage, shapes(state), rows, name, shapes(side))
    if not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(
            f"`{name}.apply` must return the pair (state, output), got {type(result).__name__}"
        )
    new, output = result
    for what, tree in (("state", new), ("output", output)):
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            if not leaf.shape or leaf.shape[0] != rows:
                raise ValueError(
                    f"`{name}.apply` was given {rows} rows and returned "
                    f"{what}{jax.tree_util.keystr(path)} of shape "
                    f"{list(leaf.shape)}; its leading axis must be the {rows} rows"
                )
    if not jax.tree.leaves(output):
        raise ValueError(
            f"`{name}.apply` returned an output without arrays; an exit must give something to read"
        )
    if stage.steps > 1:
        if jax.tree.structure(new) != jax.tree.structure(state):
            raise TypeError(
                f"`{name}.apply` changed the structure of the state from "
                f"{jax.tree.structure(state)} to {jax.tree.structure(new)}"
            )
        for (path, a), b in zip(
            jax.tree_util.tree_flatten_with_path(state)[0], jax.tree.leaves(new), strict=True
        ):
            if jnp.shape(a) != b.shape or jnp.result_type(a) != b.dtype:
                raise ValueError(
                    f"`{name}.apply` changed state{jax.tree_util.keystr(path)} from {describe(a)} "
                    f"to {describe(b)}; steps that follow one another must keep it (blocks that "
                    "change shapes are stages: pass a sequence of steps)"
                )
    return new, output


def _traced(stage: Stage, state: PyTree, rows: Size, name: str, side: PyTree) -> Any:
    """What the step returns without a side; a side is checked to be unchanged."""
    if side is None:
        return jax.eval_shape(
            lambda s: stage.step.apply(stage.step.select(jnp.int32(0)), jnp.int32(0), s), state
        )
    apply = lambda s, rows, side: stage.step.apply(
        stage.step.select(jnp.int32(0)), jnp.int32(0), s, rows, side
    )
    result = jax.eval_shape(apply, state, jax.ShapeDtypeStruct((rows,), jnp.int32), side)
    if not (isinstance(result, tuple) and len(result) == 3):
        raise TypeError(
            f"`{name}.apply` must return (state, output, side) where a `side` is given, got "
            + (f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__)
        )
    same = jax.tree.structure(result[2]) == jax.tree.structure(side)
    if not same or [describe(a) for a in jax.tree.leaves(side)] != [
        describe(a) for a in jax.tree.leaves(result[2])
    ]:
        raise ValueError(
            f"`{name}.apply` changed the side from {described(side)} to {described(result[2])}; it "
            "must keep its shapes and types"
        )
    return result[:2]


def check_outputs_agree(outputs: Sequence[PyTree]) -> None:
    """All stages must give outputs of one structure, shape and dtype.

    Raises:
      ValueError: they do not; the stage and leaf are named.
    """
    first = jax.tree_util.tree_flatten_with_path(outputs[0])[0]
    for k, output in enumerate(outputs):
        if jax.tree.structure(output) != jax.tree.structure(outputs[0]):
            raise ValueError(
                f"`step[{k}]` gives outputs of structure {jax.tree.structure(output)}, `step[0]` "
                f"{jax.tree.structure(outputs[0])}"
            )
        for (path, a), b in zip(first, jax.tree.leaves(output), strict=True):
            if a.shape != b.shape or a.dtype != b.dtype:
                raise ValueError(
                    f"`step[{k}]` gives output{jax.tree_util.keystr(path)} as {describe(b)}, "
                    f"`step[0]` as {describe(a)}"
                )


def check_row_independence(
    step: Step, state: Rows, i: int = 0, tolerance: float | None = None
) -> None:
    """Runs a step on a batch whole, permuted and split; refuses it where rows depend on others.

    Rows that are independent may be packed, permuted and run alone, which is what the engine does.
    Batch statistics, batch-wide maxima and attention across rows break it.

    Args:
      step: the step to try.
      state: a batch of at least two different rows, leaves `[B, ...]`.
      i: which block.
      tolerance: largest difference allowed, relative to the largest magnitude of the leaf (sums are
        reordered); None for 1e-4, or 8 times the machine epsilon of the coarsest floating-point
        type among weights, state and output where that is more (0.0625 for bfloat16).

    Raises:
      ValueError: a row differs; the leaf and the row are named.

    Example:
      >>> import dynexit as dx
      >>> good = dx.Step(lambda i: (), lambda w, i, h: (h + 1, h))
      >>> dx.check_row_independence(good, jnp.arange(4.0))
    """
    rows = batch_size(state)
    if rows < 2:
        raise ValueError(
            "`state` must have at least 2 rows to test that they are independent, got 1"
        )
    order = jax.device_put(np.random.default_rng(0).permutation(rows).astype(np.int32))
    whole, permuted, split = on_auto_axes(functools.partial(_three_ways, i=i), state, step, order)
    if tolerance is None:
        weights = jax.eval_shape(step.select, jax.ShapeDtypeStruct((), jnp.int32))
        tolerance = max(1e-4, 8 * _coarsest((weights, state, whole)))
    for how, other in (("permuting the batch", permuted), ("splitting the batch", split)):
        for (path, a), b in zip(
            jax.tree_util.tree_flatten_with_path(whole)[0], jax.tree.leaves(other), strict=True
        ):
            row = _first_difference(a, b, tolerance)
            if row is not None:
                where = ("state", "output")[path[0].idx] + jax.tree_util.keystr(path[1:])
                raise ValueError(
                    f"`step` couples rows: {how} changed row {row} of {where}; a row's result must "
                    "not depend on other rows (batch statistics? a reduction over the batch axis?)"
                )


def _coarsest(tree: PyTree) -> float:
    """The largest machine epsilon among the floating-point leaves; 0 without any."""
    kinds = [jnp.result_type(leaf) for leaf in jax.tree.leaves(tree)]
    return max(
        (float(jnp.finfo(k).eps) for k in kinds if jnp.issubdtype(k, jnp.inexact)), default=0
    )


@functools.partial(jax.jit, static_argnames="i")
def _three_ways(state: PyTree, step: Step, order: Array, i: int) -> tuple[PyTree, PyTree, PyTree]:
    """What a step gives for a batch whole, permuted and split, in the order of the batch."""
    apply = lambda s: step.apply(step.select(jnp.int32(i)), jnp.int32(i), s)
    take = lambda tree, index: jax.tree.map(lambda a: a[index], tree)
    permuted = take(apply(take(state, order)), jnp.argsort(order))
    cut = order.shape[0] // 2
    parts = [apply(take(state, slice(*ends))) for ends in ((None, cut), (cut, None))]
    return apply(state), permuted, jax.tree.map(lambda *a: jnp.concatenate(a), *parts)


def _first_difference(a: Array, b: Array, tolerance: float) -> int | None:
    x, y = (
        np.asarray(v.astype(jnp.float32)) if jnp.issubdtype(v.dtype, jnp.number) else np.asarray(v)
        for v in (a, b)
    )
    if np.issubdtype(x.dtype, np.number):
        scale = max(1.0, float(np.nanmax(np.abs(x), initial=0.0)))
        wrong = ~(np.isclose(x, y, rtol=0.0, atol=tolerance * scale, equal_nan=True))
    else:
        wrong = x != y
    wrong = wrong.reshape(len(wrong), -1).any(axis=1)
    return int(np.argmax(wrong)) if wrong.any() else None
