"""Flax modules of one's own as what the engine takes: a pure function and a plain dict of arrays."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
from flax import nnx
from flax.core import unfreeze

from dynexit.core.stacking import stack
from dynexit.core.types import PyTree

_REMEDY = "normalise within a row instead (LayerNorm, GroupNorm), and keep random streams out of the block (rate 0, no `rngs`)"


class Adapted(NamedTuple):
    """A module without its class.

    Attributes:
      apply: `apply(params, *inputs) -> output`, params of one block; equal modules give equal
        functions, so nothing recompiles.
      params: plain dict of arrays; leaves `[N, ...]` where N blocks were given.
    """

    apply: Callable[..., PyTree]
    params: PyTree


@dataclasses.dataclass(frozen=True)
class _Linen:
    module: nn.Module

    def __call__(self, params: PyTree, *inputs: Any) -> Any:
        return self.module.apply({"params": params}, *inputs)


@dataclasses.dataclass(frozen=True)
class _NNX:
    graph: nnx.GraphDef

    def __call__(self, params: PyTree, *inputs: Any) -> Any:
        return nnx.merge(self.graph, params)(*inputs)


def from_linen(
    module: nn.Module, variables: Mapping[str, Any] | Sequence[Mapping[str, Any]]
) -> Adapted:
    """A Linen module and its variables as `block(p, state)` and p, which `dx.stacked_step` takes.

    Args:
      module: called as `module.apply({"params": p}, state)`: without random streams, and nothing it
        sows is kept.
      variables: what `module.init` returned, with the collection "params" alone; or a list of N of
        them, to be stacked.

    Returns:
      `Adapted`.

    Raises:
      ValueError: other collections than "params" (batch statistics, caches), no blocks, or blocks
        that differ in shape.

    Example:
      >>> import jax, jax.numpy as jnp, dynexit as dx
      >>> dense = nn.Dense(4)
      >>> block, params = from_linen(dense, [dense.init(jax.random.key(i), jnp.ones((1, 4))) for i in range(3)])
      >>> params["kernel"].shape
      (3, 4, 4)
      >>> dx.run_all(dx.stacked_step(block, lambda p, h: h, params), jnp.ones((2, 4)), depth=3).shape
      (3, 2, 4)
    """
    single = isinstance(variables, Mapping)
    found = []
    for k, tree in enumerate([variables] if single else variables):
        name = "`variables`" if single else f"`variables[{k}]`"
        if set(tree) != {"params"}:
            raise ValueError(
                f'{name} must have the collection "params" alone, got {sorted(tree)}: a block is a pure function of its weights '
                f"and of independent rows; {_REMEDY}"
            )
        found.append(unfreeze(nn.unbox(tree["params"])))
    return Adapted(_Linen(module), found[0] if single else stack(found))


def from_nnx(block: nnx.Module | Sequence[nnx.Module]) -> Adapted:
    """An NNX module as `block(p, state)` and p, which `dx.stacked_step` takes.

    The module is split once; each call merges the weights it is given into a fresh copy. Whatever a
    call would change in the module would be lost, so a module that holds anything but `nnx.Param`
    is refused.

    Args:
      block: called as `block(state)`; or a list of N alike blocks, to be stacked.

    Returns:
      `Adapted`. The modules handed in stay as they are, and later changes to them are not seen.

    Raises:
      ValueError: state other than `nnx.Param` (batch statistics, random streams, caches), no
        blocks, or blocks that differ in anything but the values of their weights.

    Example:
      >>> import jax.numpy as jnp, dynexit as dx
      >>> block, params = from_nnx([nnx.Linear(4, 4, rngs=nnx.Rngs(i)) for i in range(3)])
      >>> params["kernel"].shape
      (3, 4, 4)
      >>> dx.run_all(dx.stacked_step(block, lambda p, h: h, params), jnp.ones((2, 4)), depth=3).shape
      (3, 2, 4)
    """
    single = isinstance(block, nnx.Module)
    graphs, found = [], []
    for k, module in enumerate([block] if single else block):
        name = "`block`" if single else f"`block[{k}]`"
        graph, weights, rest = nnx.split(module, nnx.Param, ...)
        if other := nnx.to_flat_state(rest):
            held = ", ".join(
                f"{'.'.join(map(str, path))} ({type(variable).__name__})"
                for path, variable in other
            )
            raise ValueError(
                f"{name} ({type(module).__name__}) must hold nnx.Param alone, got {held}: what a call changes would be lost; "
                f"{_REMEDY}"
            )
        if graphs and graph != graphs[0]:
            raise ValueError(
                f"{name} ({type(module).__name__}) must be like `block[0]` in all but the values of its weights"
            )
        graphs.append(graph)
        found.append(nnx.to_pure_dict(weights))
    params = found[0] if single else stack(found)
    return Adapted(_NNX(graphs[0]), params)
