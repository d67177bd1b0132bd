"""Many steps forward of which only the last few carry gradients: truncated backpropagation through
depth.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from dynexit.core.checks import positive_integer
from dynexit.core.types import Array, PyTree, Step
from dynexit.engine import loops


def run_truncated(
    step: Step,
    state: PyTree,
    free: Any,
    steps: Any,
    most: int,
    injected: Sequence[str] = (),
) -> tuple[PyTree, PyTree]:
    """Runs `free` steps without gradients and then `steps` steps with them; one compiled program
    for all numbers of steps.

    s_{i+1} = f(s_i) for i < free + steps; dL/ds_i = 0 for i < free. Without free steps this is the
    whole gradient.

    Args:
      step: a step that keeps the state's shape.
      state: leaves `[B, ...]`; where `injected` is given, a dict.
      free: steps without gradients, int32 `[]`, may be traced; none of their values is kept.
      steps: steps with gradients, int32 `[]`, may be traced; 1 to `most`. Steps that are not asked
        for are skipped, not masked.
      most: bounds `steps` and the memory of the backward pass.
      injected: entries of the state that every step reads and none changes (the input): they keep
        their gradient, through the last `steps` steps.

    Returns:
      The state after `free + steps` steps and the last exit's output, leaves `[B, ...]`; no other
      exit is read.

    Raises:
      TypeError, ValueError: `most` is no integer or below 1; `free` or `steps`, where not traced,
        are no integers or out of range; `injected` names an entry that the state does not have.

    Example:
      >>> import dynexit as dx
      >>> step = lambda p: dx.tied_step(lambda p, h: h * p, lambda p, h: h, p)
      >>> cube = lambda p: dx.engine.run_truncated(step(p), jnp.ones(1), free=1, steps=2, most=2)[1][0]
      >>> value, slope = jax.value_and_grad(cube)(jnp.float32(3.0))
      >>> float(value), float(slope)  # 3 p^2, the first factor a constant
      (27.0, 18.0)

    Source: the usual truncation; Geiping et al. 2025 keep 8 steps of recurrent depth.
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

    def one(state: PyTree, j: Any):
        i = free + j - (most - steps)
        return loops.maybe(
            j >= most - steps, lambda state: forward(step, i, state), lambda state: state, state
        ), None

    state = lax.scan(one, state, jnp.arange(most - 1, dtype=jnp.int32))[0]
    i = free + steps - 1
    return step.apply(step.select(i), i, state)


def _count(value: Any, name: str, low: int, high: int | None) -> Array:
    """int32 `[]`; tracers are not looked into."""
    if not jnp.issubdtype(jnp.result_type(value), jnp.integer):
        raise TypeError(f"`{name}` must be an integer, got {value!r}")
    if not isinstance(value, Tracer) and not (
        low <= int(value) and (high is None or int(value) <= high)
    ):
        raise ValueError(
            f"`{name}` must be at least {low}{'' if high is None else f' and at most {high}'}, got {int(value)}"
        )
    return jnp.asarray(value, jnp.int32)
