"""Deferred readout: output entries computed once per row, unless the criterion reads them.

A criterion on the state (its residual, a halting probability) does not read the class logits. If
the head is a large part of a block, or as wide as a vocabulary, its cost at every exit is as large
as the savings of the exits.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from dynexit.core.checks import batch_size, same_for_all, shapes
from dynexit.core.shapes import Array, Int, PyTree, Rows
from dynexit.core.stages import Stage
from dynexit.core.step_checks import check_step
from dynexit.core.types import Criterion, Step
from dynexit.criteria.memory import first_memory
from dynexit.engine.executors.tiling import default_tiling
from dynexit.engine.rows import has_nan

Entries: TypeAlias = dict[str, PyTree]  # of an output, or their shapes
Read: TypeAlias = Callable[[Rows], Entries]


def deferred_readout(step: Step, read: Callable[..., Entries], *weights: PyTree) -> Step:
    """A step with further output entries, computed once per row unless the criterion reads them.

    `run_all`, `run_full` and other functions that return every exit compute all entries at every
    exit. `run_until` and `run_stream` trace the criterion. If it depends on none of the further
    entries, these are computed once per row, from the state with which the row exited.

    Args:
      step: a step whose outputs are a dict and which has no deferred readout.
      read: `read(*weights, state) -> dict`, leaves `[b, ...]`; the same function for all exits.
      weights: the first arguments of `read`.

    Returns:
      A `Step` like the one given. Outputs, exits and depths are those of a readout at every exit,
      with one exception: a NaN in a deferred entry does not keep the row from exiting, and is
      counted once, at the exit of the row.

    Raises:
      TypeError, ValueError: the step has a deferred readout; when the step runs, an output is not a
        dict, or both dicts have the same entry.

    Example:
      >>> import dynexit as dx
      >>> def block(p, state):
      ...     return {"h": p * state["h"], "residual": jnp.abs(p * state["h"] - state["h"])}
      >>> residual = lambda p, state: {"residual": state["residual"]}
      >>> logits = lambda w, state: {"logits": state["h"][:, None] @ w}
      >>> halving = dx.tied_step(block, residual, jnp.float32(0.5))
      >>> step = dx.engine.deferred_readout(halving, logits, jnp.ones((1, 3)))
      >>> state = {"h": jnp.array([1.0, 8.0]), "residual": jnp.zeros(2)}
      >>> halted = dx.run_until(step, state, 9, dx.criteria.residual_below(0.3))
      >>> halted.exit_depth.tolist(), halted.output["logits"][:, 0].tolist()
      ([2, 5], [0.25, 0.25])
    """
    if deferred_parts(step) is not None:
        raise ValueError(
            "`step` must not have a deferred readout already; return all entries from one `read`"
        )
    later = read if isinstance(read, Partial) and not weights else Partial(read, *weights)
    return dataclasses.replace(step, apply=Partial(_both, step.apply, later))


def deferred_parts(step: Any) -> tuple[Step, Read] | None:
    """The step and the function from which `deferred_readout` made this step, or None."""
    if (
        not isinstance(step, Step)
        or not isinstance(step.apply, Partial)
        or step.apply.func is not _both
    ):
        return None
    apply, read = step.apply.args
    return dataclasses.replace(step, apply=apply), read


def partition(
    step: Any, depth: Any, state: PyTree, criterion: Criterion, side: PyTree = None, i: Any = 0
) -> tuple[Any, Criterion, Read | None]:
    """The step that a run repeats, the criterion for its outputs, and the deferred readout or None.

    A sequence of stages has no deferred readout. `i` is int32 `[]`, or `[b]` for a tied step of
    `run_stream`.
    """
    parts = deferred_parts(step)
    if parts is None:
        return step, criterion, None
    exits = depth // step.blocks
    _, whole = check_step(Stage(step, exits, 0, 0), state, side=side)
    late = jax.eval_shape(parts[1], shapes(state))
    output = {name: whole[name] for name in whole if name not in late}
    if not jax.tree.leaves(output) or not goes_without(
        criterion, output, late, batch_size(state), exits, i
    ):
        return step, criterion, None
    return parts[0], lacking(criterion, late), parts[1]


def goes_without(
    criterion: Criterion, output: Entries, late: Entries, rows: Any, exits: int, i: Any = 0
) -> bool:
    """Whether neither the score nor its memory depends on the entries `late` of an output.

    The arguments hold shapes. The score is traced and not run.
    """
    memory = first_memory(criterion, rows, {**output, **late}, exits).score
    score = lambda given, late: given[0].score(given[1], {**given[2], **late}, given[3])
    several = jax.tree.map(lambda a: jax.ShapeDtypeStruct((2, *a.shape), a.dtype), late)
    # an invalid criterion is reported by the run
    return same_for_all(score, (criterion, jnp.int32(i), output, memory), several)


def lacking(criterion: Criterion, late: Entries) -> Criterion:
    """The criterion for outputs without the entries `late`, on which it does not depend.

    `late` holds shapes, for any number of rows.
    """

    def filled(output: Entries, make: Callable[..., Any]) -> Entries:
        rows = jax.tree.leaves(output)[0].shape[0]
        return {**output, **jax.tree.map(lambda a: make((rows, *a.shape[1:]), a.dtype), late)}

    score, init = criterion.score, criterion.init_score
    return dataclasses.replace(
        criterion,
        score=lambda i, output, memory: score(i, filled(output, jnp.zeros), memory),
        init_score=lambda batch, output: init(batch, filled(output, jax.ShapeDtypeStruct)),
    )


def completed(
    read: Read | None,
    output: Rows,
    nan_exits: Int[Array, "B"],
    state: Rows,
    tile: int | None = None,
) -> tuple[Rows, Int[Array, "B"]]:
    """`Halted.output` and `Halted.nan_exits` with the deferred entries, `tile` rows at a time.

    `state` holds the states with which rows exited. With `tile` None, a tile has the default size
    of `run_until`.
    """
    if read is None:
        return output, nan_exits
    later = _in_tiles(read, state, tile or default_tiling(state, batch_size(state)).sizes[0])
    return {**output, **later}, nan_exits + (has_nan(later) & ~has_nan(output)).astype(jnp.int32)


def read_throughout(step: Any) -> Any:
    """The step, or sequence of steps, with no readout deferred, whatever the criterion."""
    if isinstance(step, (tuple, list)):
        return type(step)(map(read_throughout, step))
    return (
        step
        if deferred_parts(step) is None
        else dataclasses.replace(step, apply=Partial(_opaque, step.apply))
    )


def _in_tiles(read: Read, state: Rows, tile: int) -> Entries:
    """`read` for all rows, `tile` rows at a time."""
    rows = batch_size(state)
    if not isinstance(rows, int) or rows <= tile:  # a symbolic number of rows cannot be cut
        return read(state)
    whole = rows // tile * tile
    tiles = jax.tree.map(lambda a: a[:whole].reshape(-1, tile, *a.shape[1:]), state)
    found = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), lax.map(read, tiles))
    if whole == rows:
        return found
    return jax.tree.map(
        lambda a, b: jnp.concatenate([a, b]), found, read(jax.tree.map(lambda a: a[whole:], state))
    )


def _opaque(
    apply: Callable[..., Any], weights: PyTree, i: Any, state: PyTree, *side: Any
) -> tuple[PyTree, ...]:
    return apply(weights, i, state, *side)


def _both(
    apply: Callable[..., Any], read: Read, weights: PyTree, i: Any, state: PyTree, *side: Any
) -> tuple[PyTree, ...]:
    state, output, *rest = apply(weights, i, state, *side)
    later = read(state)
    if not isinstance(output, dict) or not isinstance(later, dict):
        kinds = f"{type(output).__name__} and {type(later).__name__}"
        raise TypeError(
            "`deferred_readout` merges two dicts, the output of the step and that of `read`; "
            f"got {kinds}"
        )
    if set(output) & set(later):
        raise ValueError(
            "`read` must return entries that are not in the output of the step, got "
            f"{sorted(set(output) & set(later))}"
        )
    return state, {**output, **later}, *rest
