"""Entries of the output that are read once of a row, where it leaves, unless the criterion asks for
them at every exit.

A criterion that goes by the state (how far it moved, a halting probability) needs no class logits
on the way. Where the head that gives them is a good part of a block, or a whole vocabulary wide,
reading it at every exit costs what leaving early has saved.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from dynexit.core.checks import Stage, batch_size, check_step, same_for_all, shapes
from dynexit.core.types import Array, Criterion, PyTree, Step
from dynexit.criteria.memory import first_memory
from dynexit.engine.executors.tiling import default_tiling
from dynexit.engine.rows import has_nan

Read = Callable[[PyTree], dict]


def deferred_readout(step: Step, read: Callable[..., dict], *weights: PyTree) -> Step:
    """The same step with further entries in its outputs, which are left for the end where the
    criterion does not read them.

    `run_all`, `run_full` and whatever else asks for every exit find the entries of both.
    `run_until` and `run_stream` trace the
    criterion: where it depends on none of the further entries, they are read once of each row, from
      the state with which it left.

    Args:
      step: one whose outputs are a dict, of what criteria may go by, and which has no late entries
        yet.
      read: `read(*weights, state) -> dict`, leaves `[b, ...]`; the same for all exits.
      weights: what it reads with.

    Returns:
      A `Step` like the one given. Outputs, exits and depths do not depend on when entries are read,
      but that a NaN among those that are read late holds no row back; it counts as that one exit's.

    Raises:
      TypeError, ValueError: the step has late entries; when it runs, outputs that are no dicts, or
        an entry of both.

    Example:
      >>> import dynexit as dx
      >>> def block(p, state):
      ...     return {"h": p * state["h"], "residual": jnp.abs(p * state["h"] - state["h"])}
      >>> halving = dx.tied_step(block, lambda p, state: {"residual": state["residual"]}, jnp.float32(0.5))
      >>> step = dx.engine.deferred_readout(halving, lambda w, state: {"logits": state["h"][:, None] @ w}, jnp.ones((1, 3)))
      >>> state = {"h": jnp.array([1.0, 8.0]), "residual": jnp.zeros(2)}
      >>> halted = dx.run_until(step, state, 9, dx.criteria.residual_below(0.3))
      >>> halted.exit_depth.tolist(), halted.output["logits"][:, 0].tolist()
      ([2, 5], [0.25, 0.25])
    """
    if deferred_parts(step) is not None:
        raise ValueError("`step` has late entries already; let one `read` give all of them")
    later = read if isinstance(read, Partial) and not weights else Partial(read, *weights)
    return dataclasses.replace(step, apply=Partial(_both, step.apply, later))


def deferred_parts(step: Any) -> tuple[Step, Read] | None:
    """What `deferred_readout` was given to make this step, or None where it did not."""
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
    """What a run repeats: a step, the criterion for its outputs, and `read(state) -> dict` of what
    is left for the end, or None.

    The steps of a sequence of stages are repeated as they are. `i` is int32 `[]`, or `[b]` as
    `run_stream` asks tied steps.
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
    criterion: Criterion, output: dict, late: dict, rows: int, exits: int, i: Any = 0
) -> bool:
    """Whether neither the score nor its memory depends on the entries `late` of an output (all
    shapes); traced, not run.
    """
    memory = first_memory(criterion, rows, {**output, **late}, exits).score
    score = lambda given, late: given[0].score(given[1], {**given[2], **late}, given[3])
    several = jax.tree.map(lambda a: jax.ShapeDtypeStruct((2, *a.shape), a.dtype), late)
    # faults of the criterion are told by the run
    return same_for_all(score, (criterion, jnp.int32(i), output, memory), several)


def lacking(criterion: Criterion, late: dict) -> Criterion:
    """The criterion for outputs without the entries `late` (shapes, of any number of rows), on
    which it does not depend.
    """

    def filled(output: dict, make: Callable) -> dict:
        rows = jax.tree.leaves(output)[0].shape[0]
        return {**output, **jax.tree.map(lambda a: make((rows, *a.shape[1:]), a.dtype), late)}

    score, init = criterion.score, criterion.init_score
    return dataclasses.replace(
        criterion,
        score=lambda i, output, memory: score(i, filled(output, jnp.zeros), memory),
        init_score=lambda batch, output: init(batch, filled(output, jax.ShapeDtypeStruct)),
    )


def completed(
    read: Read | None, output: PyTree, nan_exits: Array, state: PyTree, tile: int | None = None
) -> tuple[PyTree, Array]:
    """`Halted.output` and `Halted.nan_exits` with what `read` finds in the states that rows left
    with, `tile` rows at a time.

    None for as many as `run_until` takes by default.
    """
    if read is None:
        return output, nan_exits
    later = _in_tiles(read, state, tile or default_tiling(state, batch_size(state)).sizes[0])
    return {**output, **later}, nan_exits + (has_nan(later) & ~has_nan(output)).astype(jnp.int32)


def read_throughout(step: Any) -> Any:
    """The same step, or sequence of steps, for runs that read all of every exit whatever the
    criterion.
    """
    if isinstance(step, (tuple, list)):
        return type(step)(map(read_throughout, step))
    return (
        step
        if deferred_parts(step) is None
        else dataclasses.replace(step, apply=Partial(_opaque, step.apply))
    )


def _in_tiles(read: Read, state: PyTree, tile: int) -> dict:
    """`read` of all rows, whose results alone are held all at once."""
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


def _opaque(apply: Callable, weights: PyTree, i: Any, state: PyTree, *side: Any) -> tuple:
    return apply(weights, i, state, *side)


def _both(apply: Callable, read: Read, weights: PyTree, i: Any, state: PyTree, *side: Any) -> tuple:
    state, output, *rest = apply(weights, i, state, *side)
    later = read(state)
    if not isinstance(output, dict) or not isinstance(later, dict):
        kinds = f"{type(output).__name__} and {type(later).__name__}"
        raise TypeError(
            f"`deferred_readout` puts two dicts together, the step's output and what `read` gives; got {kinds}"
        )
    if set(output) & set(later):
        raise ValueError(
            f"`read` must give entries that the step's output has not, got {sorted(set(output) & set(later))} again"
        )
    return state, {**output, **later}, *rest
