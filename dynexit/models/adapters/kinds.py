"""Which kind of part a value is."""

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
from flax import nnx

from dynexit.core.shapes import PyTree
from dynexit.models.adapters.equinox_modules import equinox_part
from dynexit.models.adapters.linen_modules import linen_part
from dynexit.models.adapters.nnx_modules import nnx_part
from dynexit.models.adapters.part import Part, names_of


def part(value: Any, name: str) -> Part:
    """The part that `value` describes.

    Raises:
      TypeError: `value` is of no kind that is known; the argument `name` is named.
      ValueError: a module with state that a call changes.
    """
    if isinstance(value, nn.Module):
        return linen_part(value, name)
    if isinstance(value, nnx.Module):
        return nnx_part(value, None, name)
    equinox = sys.modules.get("equinox")  # a module of equinox exists only where it was imported
    if equinox and isinstance(value, equinox.Module):
        return equinox_part(value, None, name)
    if isinstance(value, tuple) and len(value) == 2 and all(map(callable, value)):
        init, apply = value
        return Part(lambda key, _: init(key), apply, apply if "key" in names_of(apply) else None)
    if not callable(value):
        raise TypeError(
            f"`{name}` must be a function, a pair (init, apply), a flax or equinox module or a "
            f"constructor of one, got {type(value).__name__}"
        )
    made = _class_of(value)
    if isinstance(made, type) and issubclass(made, nn.Module):
        raise TypeError(f"`{name}` must be an instance of {made.__name__}, got the class")
    if _is(made, nnx.Module) or "rngs" in _required(value):
        return nnx_part(None, value, name)
    if (equinox and _is(made, equinox.Module)) or "key" in _required(value):
        return equinox_part(None, value, name)
    return Part(lambda key, _: {}, _NoWeights(value))


@dataclasses.dataclass(frozen=True)
class _NoWeights:
    function: Callable[[Any], Any]

    def __call__(self, params: PyTree, x: Any) -> Any:
        return self.function(x)


def _required(function: Callable[..., Any]) -> list[str]:
    """The parameters without a default."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [
        name
        for name, p in names_of(function).items()
        if p.default is inspect.Parameter.empty and p.kind not in variadic
    ]


def _class_of(value: Any) -> Any:
    while isinstance(value, functools.partial):
        value = value.func
    return value


def _is(value: Any, kind: type[Any]) -> bool:
    return isinstance(value, type) and issubclass(value, kind)
