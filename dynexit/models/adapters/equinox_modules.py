"""equinox: a constructor `make(key=...)`, or an instance, which keeps its weights; applied to one
row at a time.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.shapes import Array, PyTree
from dynexit.models.adapters.part import NORMALISE, Part, names_of


@dataclasses.dataclass(frozen=True)
class _Equinox:
    """`static` has 1-tuples of the leaves that are not weights, and None in place of the others;
    `paths` are the places of all leaves in nested dicts.
    """

    structure: Any
    static: tuple[tuple[Any] | None, ...]
    paths: tuple[tuple[str, ...], ...]
    keyed: bool

    def module(self, params: PyTree) -> Any:
        leaves = [
            functools.reduce(dict.__getitem__, path, params) if leaf is None else leaf[0]
            for path, leaf in zip(self.paths, self.static, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)

    def __call__(self, params: PyTree, x: Any) -> Any:
        import equinox

        module = equinox.nn.inference_mode(self.module(params))
        return jax.vmap(lambda row: module(row, key=None) if self.keyed else module(row))(x)


@dataclasses.dataclass(frozen=True)
class _EquinoxTrained:
    call: _Equinox

    def __call__(self, params: PyTree, x: Any, keys: Array) -> Any:
        module = self.call.module(params)
        return jax.vmap(lambda row, key: module(row, key=key))(x, keys)


def equinox_part(instance: Any, make: Callable[..., Any] | None, name: str) -> Part:
    """An equinox module, or its constructor, as a part."""
    import equinox

    def taken(module: Any) -> tuple[_Equinox, PyTree]:
        if not isinstance(module, equinox.Module):
            raise TypeError(
                f"`{name}` takes `key`, so it must return an equinox module, got "
                f"{type(module).__name__}"
            )
        index = lambda x: isinstance(x, equinox.nn.StateIndex)
        if any(map(index, jax.tree.leaves(module, is_leaf=index))):
            raise ValueError(
                f"`{name}` ({type(module).__name__}) has state that a call changes (batch "
                f"statistics), which would be lost; {NORMALISE}"
            )
        found, structure = jax.tree_util.tree_flatten_with_path(module)
        one = lambda key: jax.tree_util.keystr((key,), simple=True)
        paths = tuple(tuple(map(one, path)) for path, _ in found)
        static: list[tuple[Any] | None] = []
        params: dict[str, Any] = {}
        for path, (_, leaf) in zip(paths, found, strict=True):
            what = f"`{name}.{'.'.join(path)}`"
            if not isinstance(leaf, (jax.Array, np.ndarray)):
                static.append((_hashable(leaf, what),))
            elif jnp.issubdtype(leaf.dtype, jnp.inexact):
                static.append(None)
                inner = functools.reduce(lambda d, k: d.setdefault(k, {}), path[:-1], params)
                inner[path[-1]] = jnp.asarray(leaf)
            else:
                raise ValueError(
                    f"{what} must be floating point, as weights are, got "
                    f"{leaf.dtype}{list(leaf.shape)}; compute it in `__call__`"
                )
        keyed = "key" in names_of(type(module).__call__)
        return _Equinox(structure, tuple(static), paths, keyed), params

    if instance is not None:
        call, given = taken(instance)
        init = lambda key, _: given
    else:
        assert make is not None
        shapes: list[_Equinox] = []
        jax.eval_shape(lambda: shapes.append(taken(make(key=jax.random.key(0)))[0]))
        (call,) = shapes
        init = lambda key, _: taken(make(key=key))[1]
    # dropout that is on has a leaf `inference`, False
    random = any(
        path[-1] == "inference" and leaf == (False,)
        for path, leaf in zip(call.paths, call.static, strict=True)
    )
    return Part(init, call, _EquinoxTrained(call) if call.keyed and random else None)


def _hashable(leaf: Any, what: str) -> Any:
    try:
        hash(leaf)
    except TypeError:
        raise TypeError(f"{what} must be an array or hashable, got {type(leaf).__name__}") from None
    return leaf
