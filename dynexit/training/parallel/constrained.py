"""Two constraints around the step of a model whose parameters are split.

XLA chooses the layout of every array of a program. Without advice it splits the state by features
where the weights are split so, and exchanges activations in every block. With a state that stays
split by rows, and weights that are gathered over "fsdp" where a block reads them, it gathers one
block's weights at a time and nothing else. Leaves of at most `SMALL` elements a block, and tied
weights, are gathered once for all blocks, because each gather has a latency. The axis "model" stays
split: the product with the second matrix of a layer ends in one sum over the devices.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from dynexit.core.checks import same_for_all
from dynexit.core.shapes import Array, PyTree
from dynexit.core.types import Model, Step, wrapped_training
from dynexit.engine.steps import around_block
from dynexit.training.optimizer import path_name
from dynexit.training.parallel.mesh import by_rows, row_devices
from dynexit.training.parallel.rules import SMALL, without_fsdp


@dataclasses.dataclass(frozen=True)
class Gather:
    """Gathers weights over "fsdp"; gradients are left to XLA.

    Attributes:
      stored: path, shape and spec of every parameter.
      mesh: the devices.
      most: elements of the largest leaf that is gathered; None for no limit.
    """

    stored: tuple[tuple[str, tuple[int, ...], PartitionSpec], ...]
    mesh: Mesh
    most: int | None = None

    def __call__(self, weights: PyTree) -> PyTree:
        def gather(path: Any, leaf: Any) -> Any:
            if self.most is not None and jnp.size(leaf) > self.most:
                return leaf
            spec = self.spec_of(path_name(path), jnp.shape(leaf))
            return leaf if spec is None else _placed(leaf, NamedSharding(self.mesh, spec))

        return jax.tree_util.tree_map_with_path(gather, weights)

    def spec_of(self, name: str, shape: tuple[int, ...]) -> PartitionSpec | None:
        """The spec of weights that a step selected, without "fsdp".

        They are those of a parameter whose path ends in theirs and whose axes, or all but the
        first, are their last ones. None where several such parameters differ, or there is none.
        """
        found = set[PartitionSpec]()
        for path, of, spec in self.stored:
            if path != name and name and not path.endswith(f"/{name}"):
                continue
            if of == shape:
                found.add(without_fsdp(spec))
            elif of and shape[len(shape) - len(of) + 1 :] == of[1:] and len(shape) >= len(of) - 1:
                more = len(shape) - len(of) + 1
                found.add(PartitionSpec(*[None] * more, *without_fsdp(spec)[1:]))
        return found.pop() if len(found) == 1 else None


@dataclasses.dataclass(frozen=True)
class ByRows:
    """Keeps leaves `[rows, ...]` split by rows; others, such as those of a tile, are unchanged."""

    rows: int
    mesh: Mesh

    def __call__(self, state: PyTree) -> PyTree:
        keep = lambda a: jax.lax.with_sharding_constraint(a, by_rows(self.mesh))
        return jax.tree.map(lambda a: keep(a) if jnp.shape(a)[:1] == (self.rows,) else a, state)


@dataclasses.dataclass(frozen=True)
class _Select:
    """`Step.select` with weights gathered."""

    gather: Gather

    def __call__(self, select: Any, i: Any) -> PyTree:
        return self.gather(select(i))


@dataclasses.dataclass(frozen=True)
class _Around:
    """Calls a block, a head or `Step.apply` between two constraints."""

    gather: Gather
    keep: ByRows

    def __call__(self, f: Any, weights: PyTree, *rest: Any) -> Any:
        result = f(self.gather(weights), *rest)
        if len(rest) == 1:  # a block or a head returns one tree
            return self.keep(result)
        return self.keep(result[0]), *result[1:]


def constrained(model: Model, params: PyTree, placed: PyTree, mesh: Mesh, rows: int) -> Model:
    """The same model with both constraints.

    Args:
      model: any.
      params: shapes of its parameters.
      placed: their shardings.
      mesh: the devices.
      rows: B, a multiple of the devices over which rows are split.

    Returns:
      A `Model` for use inside `jax.jit`; the same one where parameters are not split.
    """
    split = mesh.shape.get("fsdp", 1) * mesh.shape.get("model", 1)
    if split == 1 or rows % row_devices(mesh):
        return model
    named = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(placed), strict=True)
    stored = tuple((path_name(path), leaf.shape, where.spec) for (path, leaf), where in named)
    gather, kept = Gather(stored, mesh), ByRows(rows, mesh)

    def step(each: Step) -> Step:
        two = jnp.arange(2, dtype=jnp.int32)
        tied = same_for_all(lambda select, i: select(i), each.select, two)
        early = gather if tied else dataclasses.replace(gather, most=SMALL)
        each = dataclasses.replace(each, select=Partial(_Select(early), each.select))
        return around_block(each, _Around(gather, kept), apart=True)

    def wrap(model: Model) -> Model:
        def steps(params: PyTree) -> Any:
            made = model.steps(params)
            return tuple(map(step, made)) if isinstance(made, tuple) else step(made)

        embed = lambda params, inputs: kept(model.embed(gather(params), inputs))
        again = wrapped_training(model, wrap)
        return model._replace(embed=embed, steps=steps, training=again)

    return wrap(model)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _placed(leaf: Array, where: NamedSharding) -> Array:
    return jax.lax.with_sharding_constraint(leaf, where)


@_placed.defjvp
def _placed_jvp(
    where: NamedSharding, primals: tuple[Array, ...], tangents: tuple[Any, ...]
) -> tuple[Array, Any]:
    return _placed(primals[0], where), tangents[0]
