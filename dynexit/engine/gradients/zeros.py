"""A reverse pass in which a gradient of zero stays zero for any factor.

The gradient of `where(alive, step(old), old)` passes zeros into the step for entries that are not
alive. JAX multiplies them by the derivative there, and the product is NaN if the derivative is
infinite. For independent rows, the step runs on a live row in place of each exited one
(`rows.live_in_all`). The positions of a row are not independent, since live positions read the
others. Here the step runs on all positions, and in the backward pass 0 x inf and 0 / 0 are 0.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import dtypes
from jax.extend import core

from dynexit.core.shapes import Array, PyTree

INLINED = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")


def zero_stays_zero(f: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`f`, a function of trees of arrays without arrays in its closure, with this reverse pass."""

    @jax.custom_vjp
    def run(*args: PyTree) -> PyTree:
        return f(*args)

    def forward(*args: PyTree) -> tuple[PyTree, Any]:
        leaves, tree = jax.tree.flatten(args)
        moving = [k for k, a in enumerate(leaves) if _is_float(a)]

        def of_floats(floats: list[Array]) -> tuple[list[Array], list[Array]]:
            given = list(leaves)
            for k, a in zip(moving, floats, strict=True):
                given[k] = a
            out = jax.tree.leaves(f(*jax.tree.unflatten(tree, given)))
            return [a for a in out if _is_float(a)], [a for a in out if not _is_float(a)]

        structure = jax.tree.structure(jax.eval_shape(f, *args))
        floats, pull, others = jax.vjp(of_floats, [leaves[k] for k in moving], has_aux=True)
        whole = [iter(others), iter(floats)]
        kinds = [_is_float(a) for a in jax.tree.leaves(jax.eval_shape(f, *args))]
        out = jax.tree.unflatten(structure, [next(whole[kind]) for kind in kinds])
        return out, (pull, args)

    def backward(kept: Any, given: PyTree) -> PyTree:
        pull, args = kept
        floats = [a for a in jax.tree.leaves(given) if a.dtype != dtypes.float0]
        closed = jax.make_jaxpr(pull)(floats)
        moved = iter(_evaluate(closed.jaxpr, closed.consts, floats))
        none = lambda a: np.zeros(jnp.shape(a), dtypes.float0)
        return jax.tree.map(lambda a: next(moved) if _is_float(a) else none(a), args)

    run.defvjp(forward, backward)
    return run


def _evaluate(jaxpr: core.Jaxpr, consts: list[Any], args: list[Any]) -> list[Any]:
    """Evaluates a program in which products and quotients of zero are zero."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= zip(jaxpr.invars, args, strict=True)
    read = lambda x: x.val if isinstance(x, core.Literal) else values[x]
    for equation in jaxpr.eqns:
        given, name = [read(x) for x in equation.invars], equation.primitive.name
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if name in INLINED and isinstance(inner, core.ClosedJaxpr):
            found = _evaluate(inner.jaxpr, inner.consts, given)
        elif name == "mul":
            found = [_product(*given)]
        elif name == "div":
            found = [jnp.where(given[0] == 0, jnp.zeros_like(given[0]), given[0] / given[1])]
        else:
            params = equation.primitive.get_bind_params(equation.params)
            functions, params = (
                params if isinstance(params, tuple) else ((), params)
            )  # jax < 0.10.2
            found = equation.primitive.bind(*functions, *given, **params)
            found = found if equation.primitive.multiple_results else [found]
        values |= zip(equation.outvars, found, strict=True)
    return [read(x) for x in jaxpr.outvars]


def _product(a: Array, b: Array) -> Array:
    product = a * b
    if not _is_float(product):
        return product
    return jnp.where((a == 0) | (b == 0), jnp.zeros_like(product), product)


def _is_float(a: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(a), jnp.inexact)
