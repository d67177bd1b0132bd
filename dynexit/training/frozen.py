"""Frozen parameters: those that a method names get no gradient, no optimizer state and no decay.

They stay part of the parameters, so programs take them as arguments and checkpoints keep them.
"""

from typing import Any

import jax

from dynexit.core.shapes import PyTree
from dynexit.core.types import Frozen
from dynexit.training.optimizer import path_name


def is_frozen(frozen: Frozen, path: str) -> bool:
    """Whether a parameter is frozen.

    Args:
      frozen: of a `Method`.
      path: of the parameter.

    Example:
      >>> is_frozen(("trunk",), "trunk/block/up/kernel"), is_frozen(("trunk",), "trunks/kernel")
      (True, False)
    """
    if callable(frozen):
        return bool(frozen(path))
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in frozen)


def split(params: PyTree, frozen: Frozen) -> tuple[PyTree, PyTree]:
    """`(trained, kept)`, each the tree of parameters with None in place of the others.

    Raises:
      TypeError: `frozen` is neither a function nor a tuple of strings.
      ValueError: it names no parameter, or all of them.

    Example:
      >>> split({"head": 1.0, "trunk": {"w": 2.0}}, ("trunk",))
      ({'head': 1.0, 'trunk': {'w': None}}, {'head': None, 'trunk': {'w': 2.0}})
    """
    if frozen == ():
        return params, jax.tree.map(lambda _: None, params)
    if not callable(frozen) and not (
        isinstance(frozen, tuple) and all(isinstance(prefix, str) for prefix in frozen)
    ):
        raise TypeError(
            f"`method.frozen` must be a function of a path or a tuple of prefixes, got {frozen!r}"
        )
    leaves = jax.tree_util.tree_leaves_with_path(params)
    names = [path_name(path) for path, _ in leaves]
    found = [is_frozen(frozen, name) for name in names]
    unused = [
        prefix
        for prefix in (() if callable(frozen) else frozen)
        if not any(is_frozen((prefix,), name) for name in names)
    ]
    if unused or not any(found):
        tops = sorted({name.split("/")[0] for name in names})
        what = repr(unused[0]) if unused else "a function"
        raise ValueError(
            f"`method.frozen` is {what}, which no parameter's path begins with or matches; "
            f"paths begin with {', '.join(map(repr, tops))}"
        )
    if all(found):
        raise ValueError("`method.frozen` names all parameters, so there is nothing to train")
    structure = jax.tree.structure(params)
    keep = lambda wanted: [
        leaf if is_kept is wanted else None
        for (_, leaf), is_kept in zip(leaves, found, strict=True)
    ]
    return structure.unflatten(keep(False)), structure.unflatten(keep(True))


def joined(trained: PyTree, kept: PyTree) -> PyTree:
    """The inverse of `split`.

    Example:
      >>> joined(*split({"head": 1.0, "trunk": 2.0}, ("trunk",)))
      {'head': 1.0, 'trunk': 2.0}
    """
    absent: Any = lambda leaf: leaf is None
    return jax.tree.map(lambda a, b: b if a is None else a, trained, kept, is_leaf=absent)
