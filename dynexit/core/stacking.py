"""Parameters of N blocks of equal structure as one tree with a leading axis `[N]`."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynexit.core.shapes import AnyArray, Int, PyTree, Size


def stack(blocks: Sequence[PyTree]) -> PyTree:
    """Stacks the parameters of N blocks: leaves `[...]` become `[N, ...]`.

    Args:
      blocks: N trees of equal structure, shapes and dtypes.

    Returns:
      One tree of the same structure, leaves `[N, ...]`.

    Raises:
      TypeError: a leaf is not an array; the message names it.
      ValueError: `blocks` is empty, or two blocks differ in structure, shape or dtype; the message
        names the leaf.

    Example:
      >>> stack([{"w": jnp.zeros(3)}, {"w": jnp.ones(3)}])["w"].shape
      (2, 3)
    """
    if not blocks:
        raise ValueError("`blocks` must hold at least one block, got none")
    first = jax.tree_util.tree_flatten_with_path(blocks[0])[0]
    structure = jax.tree.structure(blocks[0])
    for k, block in enumerate(blocks):
        refuse_other_leaves(block, f"blocks[{k}]")
        if jax.tree.structure(block) != structure:
            raise ValueError(
                f"`blocks[{k}]` has structure {jax.tree.structure(block)}, "
                f"`blocks[0]` has {structure}"
            )
        for (path, a), b in zip(first, jax.tree.leaves(block), strict=True):
            if jnp.shape(a) != jnp.shape(b) or jnp.result_type(a) != jnp.result_type(b):
                raise ValueError(
                    f"`blocks[{k}]{jax.tree_util.keystr(path)}` is {_type(b)}, "
                    f"in `blocks[0]` it is {_type(a)}"
                )
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)


def take(params: PyTree, i: int | Int[AnyArray, ""]) -> PyTree:
    """Selects the parameters of block i: leaves `[N, ...]` become `[...]`.

    Args:
      params: stacked parameters, leaves `[N, ...]`.
      i: integer scalar, clamped to 0..N-1; may be traced.

    Returns:
      A tree of the same structure, leaves `[...]`.

    Example:
      >>> take({"w": jnp.arange(6).reshape(3, 2)}, 1)["w"].tolist()
      [2, 3]
    """
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, 0, keepdims=False), params)


def unstack(params: PyTree) -> list[PyTree]:
    """The inverse of `stack`.

    Args:
      params: stacked parameters, leaves `[N, ...]`.

    Returns:
      A list of N trees, leaves `[...]`.

    Raises:
      ValueError: as `length`.

    Example:
      >>> [block["w"].tolist() for block in unstack({"w": jnp.arange(4).reshape(2, 2)})]
      [[0, 1], [2, 3]]
    """
    return [jax.tree.map(lambda a, k=k: a[k], params) for k in range(length(params, "params"))]


def length(params: PyTree, name: str) -> Size:
    """The size of the leading axis that all leaves share.

    Args:
      params: a tree of arrays.
      name: what error messages call the tree.

    Returns:
      N.

    Raises:
      TypeError: a leaf is not an array; the message names it.
      ValueError: there are no leaves, a leaf is a scalar, or the sizes differ; the message names
        the leaf.

    Example:
      >>> length({"w": jnp.zeros((3, 2)), "b": jnp.zeros(3)}, "params")
      3
    """
    refuse_other_leaves(params, name)
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    if not leaves:
        raise ValueError(f"`{name}` holds no arrays")
    sizes = {}
    for path, leaf in leaves:
        where = f"`{name}`{jax.tree_util.keystr(path)}"
        if jnp.ndim(leaf) == 0:
            raise ValueError(f"{where} is a scalar; every leaf needs the same leading axis")
        sizes.setdefault(jnp.shape(leaf)[0], where)
    if len(sizes) > 1:
        raise ValueError(
            "leading axes differ: "
            + ", ".join(f"{where} has {size}" for size, where in sizes.items())
        )
    return next(iter(sizes))


def _type(leaf: Any) -> str:
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"


def refuse_other_leaves(tree: PyTree, name: str) -> None:
    """Raises where a leaf is not an array: an activation function or a string in a module.

    Raises:
      TypeError: the message names the argument `name` and the leaf.

    Example:
      >>> refuse_other_leaves({"w": jnp.ones(3), "act": abs}, "params")  # doctest: +ELLIPSIS
      Traceback (most recent call last):
        ...
      TypeError: `params`['act'] must be an array, got a builtin_function_or_method; ...
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not isinstance(leaf, _ARRAYS) and not (
            hasattr(leaf, "shape") and hasattr(leaf, "dtype")
        ):
            raise TypeError(
                f"`{name}`{jax.tree_util.keystr(path)} must be an array, got a "
                f"{type(leaf).__name__}; keep what is not an array out of the tree "
                "(`equinox.partition(module, equinox.is_array)`), or use `dx.build`"
            )


_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)
