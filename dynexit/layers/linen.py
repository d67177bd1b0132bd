"""Linen modules as pure functions of plain dicts of arrays."""

import dataclasses
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import InvalidRngError

from dynexit.core.shapes import Array, Key, PyTree

Module = TypeVar("Module", bound=nn.Module)


def apply_linen(module: nn.Module, params: PyTree, *inputs: PyTree) -> PyTree:
    """Calls a module with its parameters and without random streams.

    Args:
      module: a Linen module; nothing that it sows or updates is kept.
      params: its collection "params".
      *inputs: arguments of its `__call__`.

    Returns:
      What the module returns.

    Raises:
      ValueError: the module draws random numbers, as dropout does in training mode.

    Example:
      >>> dense = nn.Dense(3)
      >>> params = initial(dense, jax.random.key(0), jnp.ones((1, 4)))
      >>> apply_linen(dense, params, jnp.ones((2, 4))).shape
      (2, 3)
    """
    try:
        return module.apply({"params": params}, *inputs)
    except InvalidRngError as error:
        raise ValueError(
            f"`module` ({type(module).__name__}) must not draw random numbers, got a request for "
            "a random stream; make its dropout layers deterministic or set their rate to 0"
        ) from error


@dataclasses.dataclass(frozen=True)
class Apply:
    """A Linen module as a pure function `(p, *inputs) -> output` that reads `p[part]`.

    Equal modules give equal functions, so `jax.jit` compiles them once.

    Attributes:
      module: the Linen module.
      part: the entry of `p` that holds its parameters.

    Raises:
      ValueError: as `apply_linen`, when it is called.

    Example:
      >>> head = Apply(nn.Dense(3), "head")
      >>> p = {"head": initial(head.module, jax.random.key(0), jnp.ones((1, 4)))}
      >>> head(p, jnp.ones((2, 4))).shape
      (2, 3)
    """

    module: nn.Module
    part: str

    def __call__(self, p: PyTree, *inputs: PyTree) -> PyTree:
        return apply_linen(self.module, p[self.part], *inputs)


def initial(module: nn.Module, key: Key[Array, ""], *example: PyTree) -> PyTree:
    """Draws the parameters of a module, for inputs of float32 and of integers.

    Args:
      module: a Linen module.
      key: consumed.
      *example: arguments of its `__call__`; `jax.ShapeDtypeStruct` leaves suffice. Floating point
        ones are taken for float32.

    Returns:
      A plain dict of arrays.

    Example:
      >>> example = jax.ShapeDtypeStruct((1, 4), jnp.float32)
      >>> initial(nn.Dense(3), jax.random.key(0), example)["bias"].shape
      (3,)
    """

    def zeros(like: Any) -> Array:
        floats = jnp.issubdtype(like.dtype, jnp.floating)
        return jnp.zeros(like.shape, jnp.float32 if floats else like.dtype)

    return module.init(key, *jax.tree.map(zeros, example))["params"]


def initial_stack(module: nn.Module, key: Key[Array, ""], example: PyTree, blocks: int) -> PyTree:
    """Draws the parameters of `blocks` equal modules.

    Args:
      module, key, example: as in `initial`.
      blocks: N.

    Returns:
      A plain dict of arrays `[N, ...]`.

    Example:
      >>> initial_stack(nn.Dense(3), jax.random.key(0), jnp.ones((1, 4)), 2)["kernel"].shape
      (2, 4, 3)
    """
    return jax.vmap(lambda k: initial(module, k, example))(jax.random.split(key, blocks))


def merged(parent: nn.Module, module: Module) -> Module:
    """Puts the parameters of `module` directly among those of `parent`.

    Args:
      parent: the module whose `__call__` is running.
      module: a module that was made there.

    Returns:
      `module`; its parameters have no level of their own.

    Example:
      >>> class Twice(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return merged(self, Inner())(x)
      >>> class Inner(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return nn.Dense(2, name="dense")(x)
      >>> list(initial(Twice(), jax.random.key(0), jnp.ones((1, 4))))
      ['dense']
    """
    nn.share_scope(parent, module)
    return module


def block_names(count: int) -> tuple[str, ...]:
    """Names of `count` blocks.

    Example:
      >>> block_names(2)
      ('block00', 'block01')
    """
    return tuple(f"block{i:02d}" for i in range(count))


def step_names(count: int, digits: int = 3, word: str = "step") -> tuple[str, ...]:
    """Names of `count` iterations of a tied block.

    Example:
      >>> step_names(2, word="tick")
      ('tick000', 'tick001')
    """
    return tuple(f"{word}{i:0{digits}d}" for i in range(count))
