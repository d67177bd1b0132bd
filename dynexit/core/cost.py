"""FLOPs and bytes of a function, from XLA's cost analysis.

Nothing is executed. XLA counts the body of a loop once, whatever its trip count. Here a `scan` (and
a `fori_loop` of known length) is unrolled before counting; the body of a `while_loop` still counts
once. The cost of a network with exits is therefore the cost of each step, times the number of
times it runs; see `dynexit.evaluation.costs`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from dynexit.core.shapes import PyTree


class Cost(NamedTuple):
    """Cost of one call.

    Attributes:
      flops: FLOPs of the program before optimisation, so the same on every device; a multiply-add
        is 2, and transcendental functions are not counted.
      bytes: bytes read and written by the program as compiled for this device.
    """

    flops: float
    bytes: float


def cost_of(f: Callable[..., Any], *args: PyTree) -> Cost:
    """Cost of `f(*args)`, which is compiled and not executed.

    Args:
      f: a function that `jax.jit` accepts. Scans count by their length (and are compiled
        unrolled), the body of a `while_loop` once.
      *args: trees of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
      A `Cost`.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jax.ShapeDtypeStruct((8, 16), jnp.float32)
      >>> w = jax.ShapeDtypeStruct((16, 4), jnp.float32)
      >>> cost_of(jnp.dot, x, w).flops  # 2 x 8 x 16 x 4
      1024.0
    """
    lowered = _lowered(f, *args)
    return Cost(
        _entry(lowered.cost_analysis(), "flops"),
        _entry(lowered.compile().cost_analysis(), "bytes accessed"),
    )


def flops_of(f: Callable[..., Any], *args: PyTree) -> float:
    """FLOPs of `f(*args)`, as `cost_of` counts them; the program is lowered and not compiled.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jax.ShapeDtypeStruct((8, 16), jnp.float32)
      >>> flops_of(lambda x: x @ x.T, x)  # 2 x 8 x 16 x 8
      2048.0
    """
    return _entry(_lowered(f, *args).cost_analysis(), "flops")


def _lowered(f: Callable[..., Any], *args: PyTree) -> Any:
    program = jax.make_jaxpr(f)(*args)
    flat = jaxpr_as_fun(ClosedJaxpr(_unrolled(program.jaxpr), program.consts))
    return jax.jit(flat).lower(*jax.tree.leaves(args))


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
