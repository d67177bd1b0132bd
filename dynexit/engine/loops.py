"""Loops that end when all rows have exited, inside or outside of `jax.shard_map`.

Inside of `jax.shard_map` each device ends its loop when its own rows have exited, without waiting
for other devices. This has three consequences. A carry that becomes device-varying in the loop must
be declared so before the loop. A step must not communicate over a mesh axis along which the
decision differs, since devices would wait without end for one that has ended its loop. It may
communicate over an axis along which the decision is the same on all devices (tensor parallelism),
except by `ppermute`, for which XLA waits for all devices. And no other axis may be automatic, since
XLA adds collectives along it after tracing; `collectives.py` reads them in a compiled program.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from dynexit.core.shapes import Array, Bool, Int, Num, PyTree
from dynexit.engine.collectives import reading

COLLECTIVES = frozenset(
    "all_gather all_gather_invariant all_gather_reduced all_to_all pbroadcast pmax pmin ppermute "
    "psum psum_invariant psum_scatter ragged_all_to_all reduce_scatter unreduced_psum "
    "unreduced_reduce_scatter".split()
)


def while_loop(
    go_on: Callable[[Any], Bool[Array, ""]], body: Callable[[Any], Any], carry: Any
) -> Any:
    """`lax.while_loop`, inside or outside of `jax.shard_map`.

    Raises:
      ValueError: the body communicates between devices whose decisions differ.
    """
    carry = _spread(body, carry)
    _refuse_collectives(body, carry, jax.eval_shape(go_on, carry))
    return lax.while_loop(go_on, body, carry)


def repeat(times: Int[Array, ""], body: Callable[[Any], Any], carry: Any) -> Any:
    """Applies `body` for `times` iterations, int32 `[]`, as `while_loop`."""
    carry = _spread(body, carry)
    _refuse_collectives(body, carry, times)
    return lax.fori_loop(0, times, lambda _, carry: body(carry), carry)


def scan(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: PyTree) -> tuple[Any, Any]:
    """`lax.scan`, inside or outside of `jax.shard_map`; its length does not depend on rows."""
    first = lambda carry: body(carry, jax.tree.map(lambda a: a[0], xs))[0]
    return lax.scan(body, _spread(first, carry), xs)


def maybe(
    decision: Bool[Array, ""],
    run: Callable[[Any], Any],
    otherwise: Callable[[Any], Any],
    operand: Any,
) -> Any:
    """`lax.cond`, inside or outside of `jax.shard_map`; raises as `while_loop`."""
    axes = _manual_axes()
    if axes:
        _refuse_collectives(run, operand, decision)
        ran, stayed = (jax.eval_shape(branch, operand) for branch in (run, otherwise))
        over = jax.tree.map(
            lambda a, b: _varying(a) | _varying(b) | _varying(decision), ran, stayed
        )
        spread = lambda branch: lambda operand: jax.tree.map(_vary, branch(operand), over)
        run, otherwise = spread(run), spread(otherwise)
    return lax.cond(decision, run, otherwise, operand)


def forward_only(tree: PyTree, name: str) -> PyTree:
    """The tree, whose reverse-mode gradient raises an error with the name of the function."""
    marked = lambda a: _forward_only.bind(a, name=name) if _is_float(a) else a
    return jax.tree.map(marked, tree)


def _is_float(a: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(a), jnp.inexact)


def _refuse_reverse(gradient: Any, value: Any, *, name: str) -> None:
    raise TypeError(
        f"`dx.{name}` has no gradient in reverse mode, since its loop stores no steps: use "
        "`dx.run_bounded`, which runs the same rows to the same exits, or `dx.run_all`"
    )


_forward_only = core.Primitive("forward_only")
_forward_only.def_impl(lambda a, name: a)
_forward_only.def_abstract_eval(lambda a, name: a)
ad.deflinear2(_forward_only, _refuse_reverse)
batching.defvectorized(_forward_only)
mlir.register_lowering(_forward_only, lambda context, a, name: [a])


def summed_like(gradient: Num[Array, "..."], value: Num[Array, "..."]) -> Num[Array, "..."]:
    """The gradient of a value that is equal on all devices: the sum of their gradients."""
    axes = tuple(sorted(_varying(gradient) - _varying(value)))
    return lax.psum(gradient, axes) if axes else gradient


def _manual_axes() -> tuple[str, ...]:
    """The mesh axes of the `jax.shard_map` that is being traced."""
    return tuple(jax.sharding.get_abstract_mesh().manual_axes)


def _varying(a: Any) -> frozenset[Any]:
    """The axes along which an array, or a shape, is declared as varying."""
    a = a if isinstance(a, jax.ShapeDtypeStruct) else jax.typeof(a)
    kind = getattr(a, "manual_axis_type", a)  # `a.vma` before jax 0.10.2
    return getattr(kind, "varying", getattr(kind, "vma", frozenset()))


def _vary(a: Any, axes: frozenset[Any]) -> Any:
    missing = tuple(sorted(axes - _varying(a)))
    return lax.pcast(a, missing, to="varying") if missing else a


def _spread(body: Callable[[Any], Any], carry: Any) -> Any:
    """The carry, with each leaf declared as varying along the axes that the body needs."""
    if not _manual_axes():
        return carry
    carry = jax.tree.map(jnp.asarray, carry)
    while True:
        after = jax.eval_shape(body, carry)
        wider = jax.tree.map(lambda a, b: _vary(a, _varying(b)), carry, after)
        if all(
            _varying(a) == _varying(b)
            for a, b in zip(*map(jax.tree.leaves, (carry, wider)), strict=True)
        ):
            return carry
        carry = wider


def _refuse_collectives(body: Callable[[Any], Any], carry: Any, decision: Any) -> None:
    axes = _manual_axes()
    if not axes:
        return
    mesh = jax.sharding.get_abstract_mesh()
    checked = bool(_varying(lax.axis_index(axes[0])))  # with check_vma=False nothing is varying
    varying = set(_varying(decision)) if checked else set(axes)
    differ = "differ" if checked else "may differ (check_vma=False hides whether they do)"
    apart = sorted(axis for axis in varying if mesh.shape[axis] > 1)
    for name, over in _collectives(jax.make_jaxpr(body)(carry).jaxpr):
        if waits := sorted(varying & over):
            raise ValueError(
                f"`step` or `criterion` communicates over the mesh axis "
                f"{', '.join(map(repr, waits))} ({name}), along which the exits of rows {differ}: "
                "a device whose rows have all exited would be waited for without end. "
                "Communicate outside of the loop, or make the decision equal on all devices of "
                "that axis" + ("" if checked else " and keep check_vma=True")
            )
        if apart and name == "ppermute":
            raise ValueError(
                f"`step` or `criterion` communicates by ppermute over the mesh axis "
                f"{', '.join(map(repr, sorted(over)))}, and the exits of rows {differ} along "
                f"{', '.join(map(repr, apart))}. XLA waits for all devices at a ppermute, so one "
                "whose rows have all exited would be waited for without end. Use `all_to_all` or "
                "`all_gather`, which wait for the devices of their axis"
            )
    _refuse_automatic_axes(mesh, apart, differ)


def _refuse_automatic_axes(mesh: Any, apart: list[str], differ: str) -> None:
    """Refuses automatic axes, or records the loop where the compiled program will be read."""
    others = {
        axis: mesh.shape[axis]
        for axis in (*mesh.auto_axes, *mesh.explicit_axes)
        if mesh.shape[axis] > 1
    }
    if reading.value is not None:
        reading.value.loops.append((mesh, frozenset(apart)))
    elif apart and others:
        named = ", ".join(f"{axis!r} of {size}" for axis, size in others.items())
        raise ValueError(
            f"`mesh` has the automatic axis {named} devices, and the exits of rows {differ} along "
            f"{', '.join(map(repr, apart))}. For an automatic axis XLA may insert collectives "
            "after tracing, at which devices would wait without end for one whose rows have all "
            "exited. Make every axis manual (`jax.shard_map` without `axis_names`, with `psum` in "
            "the step), or compile with `dx.engine.compile_sharded(f, *args)`, which reads the "
            "compiled program"
        )


def _collectives(jaxpr: Any) -> Iterator[tuple[str, set[Any]]]:
    """Every collective in a program, with its mesh axes."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in COLLECTIVES:
            named = equation.params.get("axes", equation.params.get("axis_name", ()))
            yield (
                equation.primitive.name,
                set(named if isinstance(named, (tuple, list)) else (named,)),
            )
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(inner, core.ClosedJaxpr):
                    yield from _collectives(inner.jaxpr)
                elif isinstance(inner, core.Jaxpr):
                    yield from _collectives(inner)
