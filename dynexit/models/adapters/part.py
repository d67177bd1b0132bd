"""What an embedding, a block and a head are to `dx.build`: a function and a tree of arrays."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from dynexit.core.shapes import Array, Key, PyTree

NORMALISE = "normalise within a row instead (LayerNorm, GroupNorm)"


class Part(NamedTuple):
    """An embedding, a block or a head.

    Attributes:
      init: `init(key, example) -> params`, a plain dict of arrays for modules; `example` is the
        input's shapes, or None where they are not known.
      apply: `apply(params, x) -> y` at inference, leaves `[b, ...]`; equal modules have equal
        functions, so nothing is compiled again.
      train: `train(params, x, keys [b]) -> y` in training, one key for each row; None where
        training does not differ.
      traced: whether `init` needs `example`.
    """

    init: Callable[[Key[Array, ""], PyTree], PyTree]
    apply: Callable[[PyTree, PyTree], PyTree]
    train: Callable[[PyTree, PyTree, Key[Array, "b"]], PyTree] | None = None
    traced: bool = False


@dataclasses.dataclass(frozen=True)
class RowByRow:
    """`call(params, x [1, ...], key)` for every row with a key of its own."""

    call: Callable[[PyTree, PyTree, Key[Array, ""]], PyTree]

    def __call__(self, params: PyTree, x: PyTree, keys: Key[Array, "b"]) -> PyTree:
        def one(row: Any, key: Array) -> Any:
            alone = jax.tree.map(lambda a: a[None], row)
            return jax.tree.map(lambda a: a[0], self.call(params, alone, key))

        return jax.vmap(one)(x, keys)


def names_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a function by name."""
    try:
        return dict(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # builtins
        return {}
