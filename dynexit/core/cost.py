"""FLOPs and bytes of a function and of the exits of a network, from XLA's cost analysis; nothing is
run.

XLA counts the body of a loop once, whatever its trips. A `scan` (and a `fori_loop` of known length)
is unrolled before counting here; the body of a `while_loop` stays counted once. So the cost of a
network with exits is the cost of each step times how often it ran, which is what `step_costs` is
for.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from dynexit.core.checks import check_step, positive_integer, shapes, stages_of
from dynexit.core.types import PyTree, Step


class Cost(NamedTuple):
    """Cost of one call.

    Attributes:
      flops: a multiply-add is 2; the program as written, so the same on every device.
        Transcendental functions are not counted.
      bytes: read and written by the program as compiled for this device.
    """

    flops: float
    bytes: float


class Costs(NamedTuple):
    """Cost per row and exit.

    Attributes:
      flops: float64 `[E]`; a multiply-add is 2.
      bytes: float64 `[E]`, a row's share of what the batch reads and writes, weights included.
    """

    flops: np.ndarray
    bytes: np.ndarray


def cost_of(f: Callable[..., Any], *args: PyTree) -> Cost:
    """Cost of `f(*args)`, compiled and not run.

    Args:
      f: a function that `jax.jit` takes. Scans are counted by their length (and compiled at full
        length), the body of a `while_loop` once.
      args: arrays, or `jax.ShapeDtypeStruct` in their place.

    Returns:
      `Cost`.

    Example:
      >>> x, w = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 4), jnp.float32)
      >>> cost_of(jnp.dot, x, w).flops  # 2 x 8 x 16 x 4
      1024.0
    """
    program = jax.make_jaxpr(f)(*args)
    flat = jaxpr_as_fun(ClosedJaxpr(_unrolled(program.jaxpr), program.consts))
    lowered = jax.jit(flat).lower(*jax.tree.leaves(args))
    return Cost(
        _entry(lowered.cost_analysis(), "flops"),
        _entry(lowered.compile().cost_analysis(), "bytes accessed"),
    )


def step_costs(
    step: Step | Sequence[Step], state: PyTree, depth: int | Sequence[int], rows: int = 8
) -> Costs:
    """What each step costs a row, block and exit head together; the embedding is not in it.

    Args:
      step: a `Step`, or one per stage. The steps of a stage are taken to cost the same, and the
        first is measured.
      state: arrays or shapes before the first step, leaves `[B, ...]`; B does not matter.
      depth: blocks; one number, or one per stage.
      rows: batch at which the cost is counted and by which it is divided; the more rows, the less a
        row pays of the weights' bytes.

    Returns:
      `Costs` of the step that ends at each exit; see `cumulative` for the way to it.

    Raises:
      TypeError, ValueError: as `dx.run_all`.

    Example:
      >>> import dynexit as dx
      >>> step = dx.switched_step(lambda p, h: h @ p, lambda p, h: h, [jnp.zeros((16, 16))] * 3)
      >>> step_costs(step, jnp.zeros((1, 16)), depth=3).flops.round()
      array([512., 512., 512.])
    """
    rows = positive_integer(rows, "rows")
    space = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct((rows, *s.shape[1:]), s.dtype), shapes(state)
    )
    found: list[Cost] = []
    for stage in stages_of(step, depth):
        cost = cost_of(
            lambda s, h: s.apply(s.select(jnp.int32(0)), jnp.int32(0), h), stage.step, space
        )
        found += [cost] * stage.steps
        space, _ = check_step(stage, space)
    flops, moved = np.array(found, np.float64).T / rows
    return Costs(flops, moved)


def cumulative(costs: Costs) -> Costs:
    """What a row has cost when it leaves at each exit: sums over the steps up to there.

    Example:
      >>> cumulative(Costs(np.array([3.0, 1.0]), np.array([8.0, 8.0]))).flops
      array([3., 4.])
    """
    return Costs(np.cumsum(costs.flops), np.cumsum(costs.bytes))


def _unrolled(value: Any) -> Any:
    """A program, or a parameter of one of its operations, with every scan in it set to be unrolled."""
    if isinstance(value, ClosedJaxpr):
        return value.replace(jaxpr=_unrolled(value.jaxpr))
    if isinstance(value, Jaxpr):
        return value.replace(eqns=[_unrolled_operation(e) for e in value.eqns])
    return tuple(map(_unrolled, value)) if type(value) is tuple else value


def _unrolled_operation(operation: Any) -> Any:
    params = {name: _unrolled(value) for name, value in operation.params.items()}
    if operation.primitive.name == "scan":
        params["unroll"] = max(1, params["length"])
    return operation.replace(params=params)


def _entry(analysis: Any, name: str) -> float:
    """One figure of an analysis; absent is 0, for an empty program has no entries."""
    return float(analysis.get(name, 0.0)) if analysis else 0.0
