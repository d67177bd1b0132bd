"""Depth per token: each position of a row exits on its own; the row exits with the last of them."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dynexit.core.checks import described
from dynexit.core.shapes import Array, Bool, Int, PyTree, Rows
from dynexit.core.types import Criterion, Step
from dynexit.criteria.memory import first_memory
from dynexit.engine.gradients.zeros import zero_stays_zero


class TokenState(NamedTuple):
    """The state of a step whose positions exit on their own.

    Attributes:
      inner: the state of the given step, leaves `[b, ...]`; moving entries have leaves
        `[b, L, ...]`.
      output: the last output of each position, leaves `[b, L, ...]`.
      memory: the memory of the criterion, leaves `[b, L, ...]`.
      alive: bool `[b, L]`, positions that have not exited.
      steps: int32 `[b, L]`, the number of iterations of each position.
    """

    inner: Rows
    output: Rows
    memory: Rows
    alive: Bool[Array, "b L"]
    steps: Int[Array, "b L"]


def per_token(
    step: Step, state: Rows, criterion: Criterion, moving: Sequence[str] = ("h",)
) -> tuple[Step, TokenState]:
    """A step that applies the criterion to each position of a row instead of the whole row.

    A position that has exited keeps its state and its output, and the other positions still read
    its state. It saves no compute until its row exits. Compute per position is saved in decoding,
    where a row is a token.

    Args:
      step: a tied step; its state is a dict, its outputs have leaves `[b, L, ...]`.
      state: the first state, leaves `[B, ...]`.
      criterion: when a position exits; it receives positions as rows, outputs `[b L, ...]`.
      moving: the entries of the state that a position keeps when it exits, leaves `[b, L, ...]`.

    Returns:
      A step and its first state, for `run_until`, `run_all` and other runs, with
      `dx.criteria.gate_above(0.5)`. Its outputs are "output", the last output of each position;
      "gate", 1 if all positions have exited, else 0; and "steps", int32 `[b, L]`.

    Raises:
      TypeError: the state is not a dict, or the criterion is not a `dx.Criterion`.
      ValueError: `moving` names an entry that the state does not have, or the outputs have no axis
        of positions; when the step runs, the depth has more exits than the criterion has
        thresholds.

    Example:
      >>> import dynexit as dx
      >>> block = lambda p, s: {"h": s["h"] * p}
      >>> double = dx.tied_step(block, lambda p, s: s["h"], jnp.float32(2.0))
      >>> big = dx.criteria.gate_above(8.0, read=lambda output: output)
      >>> step, state = per_token(double, {"h": jnp.array([[1.0, 5.0], [3.0, 3.0]])}, big)
      >>> halted = dx.run_until(step, state, depth=9, criterion=dx.criteria.gate_above(0.5))
      >>> halted.output["steps"].tolist(), halted.exit_depth.tolist()
      ([[4, 1], [2, 2]], [4, 2])

    Source: Geiping et al. 2025, per-token exits. As in their decoding, live tokens attend to the
      last states of tokens that have exited.
    """
    moving = (moving,) if isinstance(moving, str) else tuple(moving)
    if not isinstance(state, dict):
        raise TypeError(f"`state` must be a dict, got {type(state).__name__}")
    if missing := sorted(set(moving) - set(state)):
        raise ValueError(f"`moving` names {missing}, which the state does not have")
    shapes = jax.eval_shape(
        lambda s, h: s.apply(s.select(jnp.int32(0)), jnp.int32(0), h)[1], step, state
    )
    axes = {s.shape[:2] for s in jax.tree.leaves(shapes)}
    if len(axes) != 1 or len(first_two := axes.pop()) != 2:
        raise ValueError(
            "`step` must return outputs of shape [b, L, ...], with one axis of positions, got "
            f"{described(shapes)}"
        )
    rows, positions = first_two
    apart = lambda a: a.reshape(rows, positions, *a.shape[1:])
    flat = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct((rows * positions, *s.shape[2:]), s.dtype), shapes
    )
    memory = jax.tree.map(apart, first_memory(criterion, rows * positions, flat))
    output = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    first = TokenState(
        state,
        output,
        memory,
        jnp.ones((rows, positions), bool),
        jnp.zeros((rows, positions), jnp.int32),
    )
    exits = None if criterion.exits is None else criterion.exits * step.blocks
    depth = min((d for d in (step.depth, exits) if d is not None), default=None)
    return Step(step.select, Partial(_PerToken(moving), step, criterion), step.blocks, depth), first


@dataclasses.dataclass(frozen=True)
class _PerToken:
    moving: tuple[str, ...]

    def __call__(
        self, step: Step, criterion: Criterion, weights: PyTree, i: Array, state: TokenState
    ) -> tuple[TokenState, PyTree]:
        rows, positions = state.alive.shape
        together = lambda tree: jax.tree.map(
            lambda a: a.reshape(rows * positions, *a.shape[2:]), tree
        )
        apart = lambda tree: jax.tree.map(lambda a: a.reshape(rows, positions, *a.shape[1:]), tree)
        inner, output = zero_stays_zero(_apply)(step, weights, i, state.inner)
        at = jnp.repeat(i, positions) if jnp.ndim(i) else i
        halt, memory = criterion.update(at, together(output), together(state.memory))
        keep = lambda new, old: jax.tree.map(
            lambda a, b: jnp.where(_beside(state.alive, a), a, b), new, old
        )
        new = TokenState(
            {**inner, **{name: keep(inner[name], state.inner[name]) for name in self.moving}},
            keep(output, state.output),
            keep(apart(memory), state.memory),
            state.alive & ~halt.reshape(rows, positions),
            state.steps + state.alive.astype(jnp.int32),
        )
        exits = ~new.alive.any(axis=1)
        return new, {"output": new.output, "gate": exits.astype(jnp.float32), "steps": new.steps}


def _apply(step: Step, weights: PyTree, i: Array, inner: PyTree) -> tuple[PyTree, PyTree]:
    return step.apply(weights, i, inner)


def _beside(alive: Array, a: Array) -> Array:
    return alive.reshape(alive.shape + (1,) * (a.ndim - 2))
