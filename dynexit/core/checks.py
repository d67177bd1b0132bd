"""Checks of arguments, before anything is compiled."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.shapes import PyTree, Size
from dynexit.core.stacking import length


def shapes(tree: PyTree) -> PyTree:
    """`jax.ShapeDtypeStruct` for every leaf."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), tree)


def same_for_all(f: Callable[..., PyTree], arguments: PyTree, i: PyTree) -> bool:
    """Whether `f(arguments, i)` is the same for all `i`; traced and not run.

    Arguments have leaves `[n, ...]`, of which `f` gets one entry. `f` closes over no arrays.
    """
    several = jax.vmap(f, in_axes=(None, 0), out_axes=None)
    try:
        jax.eval_shape(several, shapes(arguments), shapes(i))
    except ValueError:  # a result that depends on i cannot leave vmap without an axis for it
        return False
    return True


def describe(leaf: Any) -> str:
    """Type and shape as in messages: `float32[8, 10]`."""
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"


def described(tree: PyTree) -> PyTree:
    """`describe` of every leaf; equal where structure, types and shapes are."""
    return jax.tree.map(describe, tree)


def batch_size(state: PyTree, name: str = "state") -> Size:
    """The number of rows that all leaves share.

    Raises:
      ValueError: no leaves, leaves of different batch sizes, or an empty batch.
    """
    rows = length(state, name)
    if rows == 0:
        raise ValueError(f"`{name}` is an empty batch (0 rows); at least one row is needed")
    return rows


def positive_integer(value: Any, name: str) -> int:
    """A static integer of at least 1.

    Raises:
      TypeError: not an integer.
      ValueError: below 1.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"`{name}` must be a Python integer, got {type(value).__name__} {value!r}")
    if value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}")
    return int(value)


def entries(state: PyTree, names: Sequence[str], made_by: str) -> None:
    """Refuses a state that is not the dict which a function of the library makes.

    Raises:
      TypeError: entries are missing; the function that makes them is named.
    """
    if not isinstance(state, dict) or not set(names) <= set(state):
        came = (
            f"a dict with {sorted(state)}"
            if isinstance(state, dict)
            else f"a {type(state).__name__}"
        )
        raise TypeError(
            f"`state` must come from {made_by}, a dict with {sorted(names)}; got {came}"
        )
