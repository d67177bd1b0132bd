"""A criterion on stored outputs: thresholds are swept without running the network again."""

import jax
import jax.numpy as jnp
from jax import lax

from dynexit.core.checks import batch_size, shapes
from dynexit.core.stacking import length
from dynexit.core.types import Criterion, Halted, PyTree
from dynexit.criteria.memory import first_memory
from dynexit.engine.rows import read_exit, where_rows


def replay(criterion: Criterion, outputs: PyTree) -> Halted:
    """The exits and outputs that `run_until` would give, from `run_all`'s outputs.

    Args:
      criterion: when a row leaves.
      outputs: leaves `[E, B, ...]`.

    Returns:
      `Halted` with an empty `state`; one exit counts as one block in `exit_depth`, and
      `rows_executed` is what a perfect schedule would run, the sum of the depths.

    Raises:
      TypeError: `criterion` is not a `dx.Criterion`.
      ValueError: no exits, an empty batch, or a criterion for another number of exits or batch
        size.

    Example:
      >>> import dynexit as dx
      >>> logits = jnp.array([[[0.1, 0.0]], [[5.0, 0.0]], [[9.0, 0.0]]])  # [E=3, B=1, C=2]
      >>> dx.replay(dx.criteria.max_probability_above(0.9), logits).exit
      Array([1], dtype=int32)
    """
    if not isinstance(criterion, Criterion):
        raise TypeError(f"`criterion` must be a dx.Criterion, got {type(criterion).__name__}")
    return _replay(criterion, outputs)


@jax.jit
def _replay(criterion: Criterion, outputs: PyTree) -> Halted:
    exits = length(outputs, "outputs")
    if exits == 0:
        raise ValueError("`outputs` must have at least one exit on their leading axis, got 0")
    one = jax.tree.map(lambda a: a[0], outputs)
    batch = batch_size(one, "outputs[0]")
    memory = first_memory(criterion, batch, shapes(one), exits)

    def body(carry, x):
        i, output = x
        kept, exit, alive, memory, nans = carry
        leaves, new, nan = read_exit(criterion, i, i == exits - 1, output, memory)
        kept, memory = where_rows(alive, output, kept), where_rows(alive, new, memory)
        return (
            kept,
            jnp.where(alive, i, exit),
            alive & ~leaves,
            memory,
            nans + (nan & alive).astype(jnp.int32),
        ), None

    start = (
        jax.tree.map(jnp.zeros_like, one),
        jnp.zeros(batch, jnp.int32),
        jnp.ones(batch, bool),
        memory,
        jnp.zeros(batch, jnp.int32),
    )
    (output, exit, _, memory, nans), _ = lax.scan(
        body, start, (jnp.arange(exits, dtype=jnp.int32), outputs)
    )
    return Halted(output, exit, exit + 1, (), memory, nans, (exit + 1).sum(dtype=jnp.int32))
