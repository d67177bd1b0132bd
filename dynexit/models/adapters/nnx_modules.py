"""NNX: a constructor `make(rngs=...)`, or an instance, which keeps its weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynexit.core.shapes import Array, PyTree
from dynexit.models.adapters.part import NORMALISE, Part, RowByRow

FROZEN = "_frozen"  # beside a module's weights: its other variables, which get no gradient


@dataclasses.dataclass(frozen=True)
class _NNX:
    """`graphs` are those of inference and of training; `streams` the paths of the random state."""

    graphs: tuple[nnx.GraphDef[Any], nnx.GraphDef[Any]]
    streams: tuple[tuple[Any, ...], ...]
    name: str = dataclasses.field(compare=False)

    def __call__(self, params: PyTree, x: Any, key: Array | None = None) -> Any:
        frozen = jax.tree.map(jax.lax.stop_gradient, params.get(FROZEN, {}))
        weights = {name: value for name, value in params.items() if name != FROZEN}
        state = _merged(weights, frozen, self._random(key))
        module = nnx.merge(self.graphs[key is not None], state)
        held = lambda: {
            path: (type(v).__name__, v.get_value())
            for path, v in nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.Param)))
        }
        before = held()
        y = module(x)
        changed = [
            f"{'.'.join(map(str, path))} ({kind})"
            for path, (kind, value) in held().items()
            if path not in before or value is not before[path][1]
            if key is None or not kind.startswith("Rng")
        ]
        if changed:
            raise ValueError(
                f"`{self.name}` ({type(module).__name__}) changes its state when it is called, and "
                f"the change would be lost: {', '.join(changed)}; batch statistics must be those "
                "of a trained module in inference mode (`module.eval()`), and dropout must have "
                f"the attribute `deterministic`; otherwise {NORMALISE}"
            )
        return y

    def _random(self, key: Array | None) -> dict[Any, Any]:
        """The random state; at inference nothing reads it."""
        if not self.streams:
            return {}
        keys = jax.random.split(jax.random.key(0) if key is None else key, len(self.streams))
        tree: dict[Any, Any] = {}
        for k, (*parents, last) in enumerate(self.streams):
            inner = tree
            for name in parents:
                inner = inner.setdefault(name, {})
            inner[last] = keys[k] if last == "key" else jnp.uint32(0)
        return tree


def nnx_part(instance: nnx.Module | None, make: Callable[..., Any] | None, name: str) -> Part:
    """An NNX module, or its constructor, as a part."""

    def constructed(key: Array) -> nnx.Module:
        assert make is not None
        module = make(rngs=nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise TypeError(
                f"`{name}` takes `rngs`, so it must return an nnx.Module, got "
                f"{type(module).__name__}"
            )
        return module

    def taken(module: nnx.Module) -> tuple[_NNX, PyTree]:
        graph, weights, random, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
        frozen = nnx.to_flat_state(rest)
        held = ", ".join(f"{'.'.join(map(str, p))} ({type(v).__name__})" for p, v in frozen)
        if frozen and instance is None:
            raise ValueError(
                f"`{name}` ({type(module).__name__}) must hold nnx.Param alone, got {held}: "
                f"nothing would update it; {NORMALISE}"
            )
        quiet = nnx.clone(module)
        quiet.set_attributes(deterministic=True, raise_if_not_found=False)
        streams = tuple(path for path, _ in nnx.to_flat_state(random))
        params = dict(nnx.to_pure_dict(weights))
        if frozen:
            params[FROZEN] = nnx.to_pure_dict(rest)
        return _NNX((nnx.graphdef(quiet), graph), streams, name), params

    if instance is not None:
        call, given = taken(instance)
        init = lambda key, _: given
    else:
        shapes: list[_NNX] = []
        jax.eval_shape(lambda: shapes.append(taken(constructed(jax.random.key(0)))[0]))
        (call,) = shapes
        init = lambda key, _: taken(constructed(key))[1]
    random = call.streams and call.graphs[0] != call.graphs[1]
    return Part(init, call, RowByRow(call) if random else None)


def _merged(*trees: dict[Any, Any]) -> dict[Any, Any]:
    names = {name: [t[name] for t in trees if name in t] for tree in trees for name in tree}
    return {
        name: _merged(*found) if isinstance(found[0], dict) else found[0]
        for name, found in names.items()
    }
