"""`jax.jit` with a warning if the same code is compiled repeatedly.

JAX compares functions by identity. A lambda inside a loop is a new function in every iteration. A
program that takes it as part of a `Step` or a `Criterion` is therefore traced and compiled in every
iteration.
"""

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

COMPILATIONS = 3  # of the same code for the same shapes, before the warning
DEEPEST = 12  # levels of nested functions and containers that are compared
PACKAGE = Path(__file__).parents[1]
_compiled: dict[Any, list[Any]] = {}


def watched_jit(name: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`jax.jit` that warns once if eager calls compile the same code three times.

    Code is the same if its functions differ in identity only.

    Args:
      name: the name of the public function, for the warning.
      options: options of `jax.jit`.

    Returns:
      A decorator; the decorated function has the `lower` of the compiled function.
    """

    def wrap(f: Callable[..., Any]) -> Any:
        traces = 0

        @functools.wraps(f)
        def counted(*args: Any, **named: Any) -> Any:
            nonlocal traces
            traces += 1
            return f(*args, **named)

        compiled = jax.jit(counted, **options)

        @functools.wraps(f)
        def call(*args: Any, **named: Any) -> Any:
            before = traces
            result = compiled(*args, **named)
            given = (*args, *named.values())
            if traces > before and not any(
                isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(given)
            ):
                _count(name, given)
            return result

        setattr(call, "lower", compiled.lower)  # noqa: B010
        return call

    return wrap


def _level_of_caller() -> int:
    """The `stacklevel` of the nearest caller outside this package, for a warning of `_count`."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
        level, frame = level + 1, frame.f_back
    return level - 1


def _count(name: str, args: tuple[Any, ...]) -> None:
    key = (name, code_of(args))
    kinds = _compiled.setdefault(key, [])
    kind = jax.tree.structure(args)  # holds the functions, which JAX compares by identity
    if len(kinds) == COMPILATIONS or kind in kinds:
        return
    kinds.append(kind)
    if len(kinds) == COMPILATIONS:
        warnings.warn(
            f"`{name}` has compiled the same code {COMPILATIONS} times for the same shapes, since "
            "the functions of `step` or `criterion` are new objects at each call. Define them "
            "once, outside of the loop, and pass changing values as arrays: to `stacked_step` and "
            f"similar functions, or by `jax.tree_util.Partial(f, weights)`. Or call `{name}` in a "
            "function under `jax.jit`",
            stacklevel=_level_of_caller(),
        )


def code_of(x: Any, depth: int = 0) -> Any:
    """A hashable description of a tree by the code of functions and the types of arrays.

    Arrays are described by shape and dtype. Numbers in the closure of a function are described by
    their type, so that lambdas with different thresholds are equal.

    Example:
      >>> rule = lambda t: lambda x: x > t
      >>> code_of(rule(0.5)) == code_of(rule(0.7)), code_of(rule(0.5)) == code_of(rule(1))
      (True, False)
    """
    if depth > DEEPEST:
        return type(x)
    inner = functools.partial(code_of, depth=depth + 1)
    if isinstance(x, functools.partial):  # `Partial` too
        return type(x), inner(x.func), *map(inner, x.args), *map(inner, x.keywords.items())
    if hasattr(x, "__code__"):
        return x.__code__, *(_captured(cell, inner) for cell in x.__closure__ or ())
    if isinstance(x, (jax.Array, np.ndarray)):
        return jnp.shape(x), jnp.result_type(x)
    if isinstance(x, dict):
        return tuple((k, inner(v)) for k, v in x.items())
    if isinstance(x, (tuple, list)):
        return type(x), *map(inner, x)
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return type(x), *(inner(getattr(x, field.name)) for field in dataclasses.fields(x))
    try:
        hash(x)
    except TypeError:
        return type(x)
    return x


def _captured(cell: Any, inner: Callable[[Any], Any]) -> Any:
    try:
        x = cell.cell_contents
    except ValueError:  # not assigned yet
        return None
    return type(x) if isinstance(x, (bool, int, float, complex, np.generic)) else inner(x)
