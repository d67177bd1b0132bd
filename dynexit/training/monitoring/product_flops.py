"""FLOPs of the matrix products and convolutions of a function; nothing is lowered or compiled."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from dynexit.core.shapes import PyTree


def product_flops(f: Callable[..., Any], *args: PyTree) -> float:
    """FLOPs of `f(*args)` in matrix products and convolutions; a multiply-add is 2.

    A `scan` counts by its length, the body of a `while_loop` once, and of a `cond` the branch that
    costs most. Everything else, and kernels of Pallas, count as 0.

    Args:
      f: a function that JAX can trace.
      *args: trees of arrays or of `jax.ShapeDtypeStruct`.

    Returns:
      The FLOPs over all devices.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jax.ShapeDtypeStruct((8, 16), jnp.float32)
      >>> w = jax.ShapeDtypeStruct((16, 4), jnp.float32)
      >>> product_flops(jnp.dot, x, w)  # 2 x 8 x 16 x 4
      1024.0
    """
    return _flops(jax.make_jaxpr(f)(*args).jaxpr)


def _flops(jaxpr: Jaxpr) -> float:
    return float(sum(map(_of_operation, jaxpr.eqns)))


def _of_operation(operation: Any) -> float:
    name, params = operation.primitive.name, operation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = operation.invars[0].aval.shape
        return 2.0 * _size(operation) * math.prod(shape[d] for d in contracted)
    if name == "conv_general_dilated":
        kernel = operation.invars[1].aval.shape
        out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
        per_output = math.prod(kernel) / out_features
        # zeros between the entries of a dilated input are not multiplied
        return 2.0 * _size(operation) * per_output / math.prod(params["lhs_dilation"])
    if name == "pallas_call":
        return 0.0
    inner = [_flops(each) for value in params.values() for each in _jaxprs(value)]
    if name == "cond":
        return max(inner, default=0.0)
    times = {"scan": params.get("length", 1), "shard_map": _devices(params.get("mesh"))}
    return times.get(name, 1) * sum(inner)


def _size(operation: Any) -> int:
    return math.prod(operation.outvars[0].aval.shape)


def _devices(mesh: Any) -> int:
    return math.prod(mesh.shape.values()) if mesh is not None else 1


def _jaxprs(value: Any) -> Iterator[Jaxpr]:
    if isinstance(value, ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, Jaxpr):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _jaxprs(each)
