"""Depth by place: every place of a row (a token, a pixel) stops on its own, and the row leaves once
all of them have.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dynexit.core.checks import described
from dynexit.core.types import Array, Criterion, PyTree, Step
from dynexit.criteria.memory import first_memory
from dynexit.engine.gradients.zeros import zero_stays_zero


class TokenState(NamedTuple):
    """The state of a step whose places stop on their own.

    Attributes:
      inner: the step's own state, leaves `[b, ...]`; the entries that move are `[b, L, ...]`.
      output: what each place answered last, leaves `[b, L, ...]`.
      memory: the rule's, leaves `[b, L, ...]`.
      alive: bool `[b, L]`, places that go on.
      steps: int32 `[b, L]`, iterations that each place has taken.
    """

    inner: PyTree
    output: PyTree
    memory: PyTree
    alive: Array
    steps: Array


def per_token(
    step: Step, state: PyTree, criterion: Criterion, moving: Sequence[str] = ("h",)
) -> tuple[Step, TokenState]:
    """A step whose places each follow the rule, made from one whose rows do.

    A place that has left keeps its state and its answer, and the others go on seeing it. Nothing is
    saved until a row leaves: that is for rows, and for decoding, where a row is a token.

    Args:
      step: a tied step; its state is a dict, its outputs have leaves `[b, L, ...]`.
      state: the first state, leaves `[B, ...]`.
      criterion: asked with places as rows, outputs `[b L, ...]`.
      moving: the entries of the state that a place keeps once it has left, leaves `[b, L, ...]`.

    Returns:
      A step and its first state, for `run_until`, `run_all` and the others, with
      `dx.criteria.gate_above(0.5)`. Its outputs are {"output": the answers, "gate": 1 where all
      places have left, "steps": int32 `[b, L]`}.

    Raises:
      TypeError: a state that is no dict, a criterion that is none.
      ValueError: `moving` names an entry that the state does not have; outputs without an axis of
        places. From the run: a depth of more exits than the criterion has thresholds for.

    Example:
      >>> import dynexit as dx
      >>> double = dx.tied_step(lambda p, s: {"h": s["h"] * p}, lambda p, s: s["h"], jnp.float32(2.0))
      >>> big = dx.criteria.gate_above(8.0, read=lambda output: output)
      >>> step, state = per_token(double, {"h": jnp.array([[1.0, 5.0], [3.0, 3.0]])}, big)
      >>> halted = dx.run_until(step, state, depth=9, criterion=dx.criteria.gate_above(0.5))
      >>> halted.output["steps"].tolist(), halted.exit_depth.tolist()
      ([[4, 1], [2, 2]], [4, 2])

    Source: Geiping et al. 2025, per-token exits; as in their decoding, tokens that go on attend to
      the last states of those
    that have left.
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
            f"`step` must give outputs of shape [b, L, ...], one place axis for all, got {described(shapes)}"
        )
    rows, places = first_two
    apart = lambda a: a.reshape(rows, places, *a.shape[1:])
    flat = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct((rows * places, *s.shape[2:]), s.dtype), shapes
    )
    memory = jax.tree.map(apart, first_memory(criterion, rows * places, flat))
    output = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    first = TokenState(
        state, output, memory, jnp.ones((rows, places), bool), jnp.zeros((rows, places), jnp.int32)
    )
    exits = None if criterion.exits is None else criterion.exits * step.blocks
    depth = min((d for d in (step.depth, exits) if d is not None), default=None)
    return Step(step.select, Partial(_ByPlace(moving), step, criterion), step.blocks, depth), first


@dataclasses.dataclass(frozen=True)
class _ByPlace:
    moving: tuple[str, ...]

    def __call__(self, step, criterion, weights, i, state):
        rows, places = state.alive.shape
        together = lambda tree: jax.tree.map(lambda a: a.reshape(rows * places, *a.shape[2:]), tree)
        apart = lambda tree: jax.tree.map(lambda a: a.reshape(rows, places, *a.shape[1:]), tree)
        inner, output = zero_stays_zero(_apply)(step, weights, i, state.inner)
        at = jnp.repeat(i, places) if jnp.ndim(i) else i
        halt, memory = criterion.update(at, together(output), together(state.memory))
        keep = lambda new, old: jax.tree.map(
            lambda a, b: jnp.where(_beside(state.alive, a), a, b), new, old
        )
        new = TokenState(
            {**inner, **{name: keep(inner[name], state.inner[name]) for name in self.moving}},
            keep(output, state.output),
            keep(apart(memory), state.memory),
            state.alive & ~halt.reshape(rows, places),
            state.steps + state.alive.astype(jnp.int32),
        )
        left = ~new.alive.any(axis=1)
        return new, {"output": new.output, "gate": left.astype(jnp.float32), "steps": new.steps}


def _apply(step: Step, weights: PyTree, i: Array, inner: PyTree) -> tuple[PyTree, PyTree]:
    return step.apply(weights, i, inner)


def _beside(alive: Array, a: Array) -> Array:
    return alive.reshape(alive.shape + (1,) * (a.ndim - 2))
