"""Runs on meshes whose axes are Explicit (the default of `jax.make_mesh`), or under `jax.set_mesh`.

Along an Explicit axis JAX must know for every operation how its result is sharded, and for a
gather of rows it does not. The engine's programs therefore run with these axes as Auto, where XLA
decides, and their results are sharded as the rows were. That is correct but slow, because XLA
exchanges rows in every tile: `dx.run_sharded`, or `jax.shard_map`, exchanges nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dynexit.core.shapes import PyTree


def on_auto_axes(
    run: Callable[..., PyTree], rows: PyTree, *others: PyTree, axis: int = 0, leading: int = 0
) -> Any:
    """`run(rows, *others)`, with no axis of the mesh Explicit.

    Args:
      run: a function of trees of arrays.
      rows: leaves with the rows on an axis of B.
      others: whatever else it takes.
      axis: that of the rows.
      leading: that of the rows in the results; leaves that have none are on every device.
    """
    mesh = explicit_mesh((rows, others))
    if mesh is None:
        return run(rows, *others)
    with jax.sharding.use_abstract_mesh(as_auto(mesh)):
        results = jax.eval_shape(run, _shapes(rows), *_shapes(others))
    first = jax.tree.leaves(rows)[0]
    known = (getattr(_sharding(a), "spec", ()) for a in jax.tree.leaves(rows))
    spread = next((spec[axis] for spec in known if len(spec) > axis), None)

    def sharding(a: Any) -> NamedSharding:
        along = a.ndim > leading and a.shape[leading] == first.shape[axis]
        return NamedSharding(mesh, P(*[None] * leading, spread) if along else P())

    shardings = jax.tree.map(sharding, results)
    run = jax.sharding.auto_axes(run, axes=tuple(mesh.explicit_axes), out_sharding=shardings)
    return run(rows, *others)


def explicit_mesh(tree: PyTree) -> Any:
    """The mesh with Explicit axes on which these arrays are, or that of the context, or None."""
    kinds = [_sharding(a) for a in jax.tree.leaves(tree)]
    meshes = [kind.mesh for kind in kinds if kind is not None]
    meshes = [jax.sharding.get_abstract_mesh(), *meshes]
    return next((mesh for mesh in meshes if mesh.explicit_axes), None)


def as_auto(mesh: Any) -> Any:
    """An abstract mesh, its Explicit axes made Auto."""
    return mesh.update_axis_types(dict.fromkeys(mesh.explicit_axes, AxisType.Auto))


def refuse_undivided(size: int, **counts: int) -> None:
    """Refuses devices along the mesh axis "model" among which something cannot be split.

    Args:
      size: devices along the axis.
      **counts: what is split, by name.

    Raises:
      ValueError: a count is no multiple of `size`; it is named.
    """
    for name, count in counts.items():
        if count % size:
            raise ValueError(
                f"`mesh`: the {size} devices of the axis 'model' do not divide {name}, {count}"
            )


def _sharding(a: Any) -> Any:
    return getattr(getattr(a, "aval", None), "sharding", None)


def _shapes(tree: PyTree) -> PyTree:
    shape = lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a))  # without a sharding
    return jax.tree.map(shape, tree)
