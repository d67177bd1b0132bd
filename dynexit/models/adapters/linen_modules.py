"""Linen: an instance of a module; bound to variables (`module.bind`), it keeps them."""

import dataclasses
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import unfreeze

from dynexit.core.shapes import Array, PyTree
from dynexit.models.adapters.part import NORMALISE, Part, RowByRow, names_of


@dataclasses.dataclass(frozen=True)
class _Linen:
    module: nn.Module
    name: str = dataclasses.field(compare=False)

    def __call__(self, params: PyTree, x: Any, key: Array | None = None) -> Any:
        try:
            return self.module.apply({"params": params}, x, rngs=key, **_mode(self.module, key))
        except flax.errors.InvalidRngError as error:
            raise ValueError(
                f"`{self.name}` ({type(self.module).__name__}) draws random numbers at inference; "
                "its `__call__` must take `deterministic` (or `train`) and hand it to its dropout"
            ) from error


def _mode(module: nn.Module, key: Array | None) -> dict[str, Any]:
    """The arguments that tell a Linen module whether it is trained."""
    known = {"deterministic": key is None, "train": key is not None, "training": key is not None}
    names = names_of(type(module).__call__)
    free = lambda name: name in names and getattr(module, name, None) is None  # not a field too
    return {name: value for name, value in known.items() if free(name)}


def linen_part(module: nn.Module, name: str) -> Part:
    """A Linen module as a part."""
    variables = None
    if module.scope is not None:
        module, variables = module.unbind()

    def params_of(found: Any) -> PyTree:
        if other := sorted(set(found) - {"params"}):
            raise ValueError(
                f'`{name}` ({type(module).__name__}) must have the collection "params" alone, got '
                f"{other} too: a call would change it, for all rows at once; {NORMALISE}"
            )
        return unfreeze(nn.unbox(found.get("params", {})))

    def init(key: Array, example: PyTree) -> PyTree:
        if variables is not None:
            return given
        x = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), example)
        return params_of(module.init(key, x, **_mode(module, None)))

    given = params_of(variables) if variables is not None else None
    call = _Linen(module, name)
    train = RowByRow(call) if _mode(module, None) else None
    return Part(init, call, train, traced=variables is None)
