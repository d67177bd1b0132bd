"""Entries of the output that are read once of a row, where it leaves, unless the criterion asks for them at every exit.

A criterion that goes by the state (how far it moved, a halting probability) needs no class logits on the way. Where the head that
gives them is a good part of a block, or a whole vocabulary wide, reading it at every exit costs what leaving early has saved.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dynexit.core.checks import Stage, batch_size, check_step
from dynexit.core.types import Array, Criterion, PyTree, Step
from dynexit.exits.memory import first_memory
from dynexit.exits.rows import has_nan


def read_late(step: Step, read: Callable[..., dict], *weights: PyTree) -> Step:
    """The same step with further entries in its outputs, which are left for the end where the criterion does not read them.

    `run_all`, `run_full` and whatever else asks for every exit find the entries of both. `run_until` and `run_stream` trace the
    criterion: if it does with what the step itself gives, they read the others once of each row, from the state with which it left.
    Outputs, exits and depths are the same either way. A NaN among late entries holds no row back, and is counted once.

    Args:
      step: one whose outputs are a dict, of what criteria may go by.
      read: `read(*weights, state) -> dict`, leaves `[b, ...]`; the same for all exits.
      weights: what it reads with.

    Raises:
      TypeError, ValueError: when the step runs, outputs that are no dicts, or an entry of both.

    Example:
      >>> import dynexit as dx
      >>> def block(p, state):
      ...     return {"h": p * state["h"], "residual": jnp.abs(p * state["h"] - state["h"])}
      >>> halving = dx.tied_step(block, lambda p, state: {"residual": state["residual"]}, jnp.float32(0.5))
      >>> step = dx.exits.read_late(halving, lambda w, state: {"logits": state["h"][:, None] @ w}, jnp.ones((1, 3)))
      >>> state = {"h": jnp.array([1.0, 8.0]), "residual": jnp.zeros(2)}
      >>> halted = dx.run_until(step, state, 9, dx.criteria.residual_below(0.3))
      >>> halted.exit_depth.tolist(), halted.output["logits"][:, 0].tolist()
      ([2, 5], [0.25, 0.25])
    """
    return dataclasses.replace(step, apply=Partial(_both, step.apply, Partial(read, *weights)))


def late_parts(step: Any) -> tuple[Step, Callable[[PyTree], dict]] | None:
    """What `read_late` was given to make this step, or None where it did not."""
    if not isinstance(step, Step) or not isinstance(step.apply, Partial) or step.apply.func is not _both:
        return None
    apply, read = step.apply.args
    return dataclasses.replace(step, apply=apply), read


def parted(step: Any, depth: Any, state: PyTree, criterion: Criterion, side: PyTree = None) -> tuple[Any, Callable | None]:
    """The step that a run with this criterion repeats, and `read(state) -> dict` of what is left for the end, or None.

    The steps of a sequence of stages are repeated as they are.
    """
    parts = late_parts(step)
    if parts is None:
        return step, None
    exits = depth // step.blocks
    _, output = check_step(Stage(parts[0], exits, 0, 0), state, side=side)
    return parts if enough(criterion, output, batch_size(state), exits) else (step, None)


def completed(read: Callable | None, output: PyTree, nan_exits: Array, state: PyTree) -> tuple[PyTree, Array]:
    """`Halted.output` and `Halted.nan_exits` of a run, with what `read` finds in the states that rows left with."""
    if read is None:
        return output, nan_exits
    later = read(state)
    return {**output, **later}, nan_exits + has_nan(later).astype(jnp.int32)


def read_throughout(step: Any) -> Any:
    """The same step, or sequence of steps, for runs that read all of every exit whatever the criterion."""
    return step if late_parts(step) is None else dataclasses.replace(step, apply=Partial(_opaque, step.apply))


def enough(criterion: Criterion, output: PyTree, rows: int, exits: int) -> bool:
    """Whether a criterion does with these entries (shapes) of an output; traced, not run."""
    try:
        memory = first_memory(criterion, rows, output, exits)
        jax.eval_shape(criterion.update, jnp.int32(0), output, memory)
    except (AttributeError, KeyError, TypeError, ValueError):  # with all entries it is asked again, and its faults are told
        return False
    return True


def _opaque(apply: Callable, weights: PyTree, i: Any, state: PyTree, *side: Any) -> tuple:
    return apply(weights, i, state, *side)


def _both(apply: Callable, read: Callable, weights: PyTree, i: Any, state: PyTree, *side: Any) -> tuple:
    state, output, *rest = apply(weights, i, state, *side)
    later = read(state)
    if not isinstance(output, dict) or not isinstance(later, dict):
        kinds = f"{type(output).__name__} and {type(later).__name__}"
        raise TypeError(f"`read_late` puts two dicts together, the step's output and what `read` gives; got {kinds}")
    if set(output) & set(later):
        raise ValueError(f"`read` must give entries that the step's output has not, got {sorted(set(output) & set(later))} again")
    return state, {**output, **later}, *rest
