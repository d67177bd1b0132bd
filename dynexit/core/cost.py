"""FLOPs and bytes of a function and of each exit of a network, from XLA's cost analysis.

Nothing is executed. XLA counts the body of a loop once, whatever its trip count. Here a `scan` (and
a `fori_loop` of known length) is unrolled before counting; the body of a `while_loop` still counts
once. The cost of a network with exits is therefore the cost of each step, from `step_costs`, times
the number of times it runs.
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
      flops: FLOPs of the program before optimisation, so the same on every device; a multiply-add
        is 2, and transcendental functions are not counted.
      bytes: bytes read and written by the program as compiled for this device.
    """

    flops: float
    bytes: float


class Costs(NamedTuple):
    """Cost per row and exit.

    Attributes:
      flops: float64 `[E]`, FLOPs per row; a multiply-add is 2.
      bytes: float64 `[E]`, bytes read and written by the batch, weights included, divided by the
        number of rows.
    """

    flops: np.ndarray
    bytes: np.ndarray


def cost_of(f: Callable[..., Any], *args: PyTree) -> Cost:
    """Cost of `f(*args)`, which is compiled and not executed.

    Args:
      f: a function that `jax.jit` accepts. Scans count by their length (and are compiled
        unrolled), the body of a `while_loop` once.
      *args: trees of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
      A `Cost`.

    Example:
      >>> x = jax.ShapeDtypeStruct((8, 16), jnp.float32)
      >>> w = jax.ShapeDtypeStruct((16, 4), jnp.float32)
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
    """Cost per row of each step, with block and exit head; the embedding is not included.

    Args:
      step: a `Step`, or one per stage. The steps of a stage are assumed to cost the same; the first
        is analysed.
      state: arrays or shapes before the first step, leaves `[B, ...]`, for any B.
      depth: number of blocks, or one number per stage.
      rows: batch size of the analysed program, by which its cost is divided. With more rows, the
        bytes of the weights are shared by more rows.

    Returns:
      `Costs` of the step that ends at each exit; `cumulative` sums them up to each exit.

    Raises:
      TypeError, ValueError: as `dx.run_all`; `rows` is not an integer or is below 1.

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
    """Cost of a row that exits at each exit: the sum over the steps up to there.

    Args:
      costs: of `step_costs`, `[E]`.

    Returns:
      `Costs` `[E]`, float64.

    Example:
      >>> cumulative(Costs(np.array([3.0, 1.0]), np.array([8.0, 8.0]))).flops
      array([3., 4.])
    """
    return Costs(np.cumsum(costs.flops), np.cumsum(costs.bytes))


def _unrolled(value: Any) -> Any:
    """A jaxpr, or a parameter of one of its equations, with every scan set to be unrolled."""
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
    """One entry of a cost analysis; an empty program has no entries, which counts as 0."""
    return float(analysis.get(name, 0.0)) if analysis else 0.0
