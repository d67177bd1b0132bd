"""What a criterion remembers of each row before the first exit."""

import jax
import jax.numpy as jnp

from dynexit.core.shapes import PyTree, Size
from dynexit.core.types import Criterion, Memory


def first_memory(
    criterion: Criterion, batch: Size, output: PyTree, exits: int | None = None
) -> Memory:
    """The criterion's memory before the first exit, checked; with None the number of exits is not.

    Args:
      criterion: any.
      batch: rows.
      output: shapes of one exit's output, leaves `[batch, ...]`.
      exits: of the run.

    Raises:
      TypeError: it is no criterion.
      ValueError: the thresholds are for another number of exits, or the memory for another batch
        size.
    """
    check_exits(criterion, exits)
    return checked(criterion.init(batch, output), batch)


def check_exits(criterion: Criterion, exits: int | None) -> None:
    """Refuses a criterion whose thresholds are for another number of exits; None for any number.

    Raises:
      TypeError, ValueError: it is no criterion, or the numbers differ.
    """
    if not isinstance(criterion, Criterion):
        raise TypeError(f"`criterion` must be a dx.Criterion, got {type(criterion).__name__}")
    if exits is not None and criterion.exits not in (None, exits):
        raise ValueError(
            f"`criterion` has thresholds of shape [{criterion.exits - 1}], but the run has {exits} "
            f"exits and wants [{exits - 1}] (or temperatures of [{criterion.exits}], where "
            f"[{exits}] are wanted): the last exit takes every row"
        )


def checked(memory: PyTree, batch: Size) -> PyTree:
    """A memory whose leaves are arrays `[batch, ...]`.

    Raises:
      ValueError: a leaf for another batch size.
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(memory)[0]:
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != batch:
            raise ValueError(
                f"`criterion` has memory{jax.tree_util.keystr(path)} of shape "
                f"{list(jnp.shape(leaf))} for a batch of {batch} rows; its leading axis must be "
                f"{batch} (is the criterion meant for another batch size?)"
            )
    return jax.tree.map(jnp.asarray, memory)
