"""What a criterion remembers of each row before the first exit."""

import jax
import jax.numpy as jnp

from dynexit.core.types import Criterion, PyTree


def start(criterion: Criterion, batch: int, output: PyTree) -> PyTree:
    """A criterion's memory before the first exit.

    Args:
      criterion: any.
      batch: rows.
      output: shapes of one exit's output, leaves `[batch, ...]`; handed on where
        `criterion.templated`.

    Returns:
      The memory, leaves `[batch, ...]`.
    """
    return criterion.init(batch, output) if criterion.templated else criterion.init(batch)


def first_memory(
    criterion: Criterion, batch: int, output: PyTree, exits: int | None = None
) -> PyTree:
    """The criterion's memory before the first exit, checked; with None the number of exits is not.

    Raises:
      TypeError: it is no criterion.
      ValueError: the thresholds are for another number of exits, or the memory for another batch
        size.
    """
    if not isinstance(criterion, Criterion):
        raise TypeError(f"`criterion` must be a dx.Criterion, got {type(criterion).__name__}")
    if exits is not None and criterion.exits not in (None, exits):
        raise ValueError(
            f"`criterion` has thresholds of shape [{criterion.exits - 1}], but the run has {exits} exits and wants [{exits - 1}] "
            f"(or temperatures of [{criterion.exits}], where [{exits}] are wanted): the last exit takes everyone"
        )
    memory = start(criterion, batch, output)
    for path, leaf in jax.tree_util.tree_flatten_with_path(memory)[0]:
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != batch:
            raise ValueError(
                f"`criterion` has memory{jax.tree_util.keystr(path)} of shape {list(jnp.shape(leaf))} for a batch of {batch} rows; "
                f"its leading axis must be {batch} (is the criterion meant for another batch size?)"
            )
    return jax.tree.map(jnp.asarray, memory)
