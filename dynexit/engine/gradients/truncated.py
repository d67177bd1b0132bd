"""Truncated backpropagation through depth: only the last few steps carry gradients."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from dynexit.core.checks import positive_integer
from dynexit.core.shapes import AnyArray, Array, Int, PyTree, Rows
from dynexit.core.types import Step
from dynexit.engine import loops


def run_truncated(
    step: Step,
    state: Rows,
    free: int | Int[AnyArray, ""],
    steps: int | Int[AnyArray, ""],
    most: int,
    injected: Sequence[str] = (),
) -> tuple[Rows, Rows]:
    """Runs `free` steps without gradients, then `steps` steps with gradients.

    s_{i+1} = f(s_i) for i < free + steps; dL/ds_i = 0 for i < free. With free = 0 the gradient is
    that of all steps. One compiled program serves all numbers of steps.

    Args:
      step: a step that keeps the shape of the state.
      state: leaves `[B, ...]`; a dict if `injected` is given.
      free: number of steps without gradients, int32 `[]`, may be traced; their values are not
        stored.
      steps: number of steps with gradients, 1 to `most`, int32 `[]`, may be traced. The other steps
        up to `most` are skipped, not masked.
      most: the bound of `steps` and of the memory of the backward pass.
      injected: entries of the state that every step reads and no step changes (the input). They
        keep their gradient through the last `steps` steps.

    Returns:
      The state after `free + steps` steps and the output of the last exit, leaves `[B, ...]`; no
      other exit is read.

    Raises:
      TypeError, ValueError: `most` is not an integer or is below 1; `free` or `steps`, if not
        traced, is not an integer or is out of range; `injected` names an entry that the state does
        not have.

    Example:
      >>> import dynexit as dx
      >>> step = lambda p: dx.tied_step(lambda p, h: h * p, lambda p, h: h, p)
      >>> run = lambda p: dx.engine.run_truncated(step(p), jnp.ones(1), free=1, steps=2, most=2)
      >>> value, slope = jax.value_and_grad(lambda p: run(p)[1][0])(jnp.float32(3.0))
      >>> float(value), float(slope)  # p^3 and 2 p^2: the first factor is a constant
      (27.0, 18.0)

    Source: truncated backpropagation; Geiping et al. 2025 use 8 steps of recurrent depth.
    """
    most = positive_integer(most, "most")
    if missing := sorted(set(injected) - set(state if isinstance(state, dict) else ())):
        raise ValueError(f"`injected` names {missing}, which the state does not have")
    free, steps = _count(free, "free", 0, None), _count(steps, "steps", 1, most)
    frozen, still = lax.stop_gradient((step, state))

    def forward(step: Step, i: Any, state: PyTree) -> PyTree:
        return step.apply(step.select(i), i, state)[0]

    _, moved = loops.while_loop(
        lambda c: c[0] < free, lambda c: (c[0] + 1, forward(frozen, *c)), (jnp.int32(0), still)
    )
    begun = jax.tree.map(
        lambda first, later: jnp.where(free == 0, first, lax.stop_gradient(later)), state, moved
    )
    state = {**begun, **{name: state[name] for name in injected}} if injected else begun

    def one(state: PyTree, j: Any) -> tuple[PyTree, None]:
        i = free + j - (most - steps)
        return loops.maybe(
            j >= most - steps, lambda state: forward(step, i, state), lambda state: state, state
        ), None

    state = lax.scan(one, state, jnp.arange(most - 1, dtype=jnp.int32))[0]
    i = free + steps - 1
    return step.apply(step.select(i), i, state)


def _count(value: Any, name: str, low: int, high: int | None) -> Array:
    """`value` as int32 `[]`; the range of a tracer is not checked."""
    if not jnp.issubdtype(jnp.result_type(value), jnp.integer):
        raise TypeError(f"`{name}` must be an integer, got {value!r}")
    if not isinstance(value, Tracer) and not (
        low <= int(value) and (high is None or int(value) <= high)
    ):
        raise ValueError(
            f"`{name}` must be at least {low}{'' if high is None else f' and at most {high}'}, "
            f"got {int(value)}"
        )
    return jnp.asarray(value, jnp.int32)
