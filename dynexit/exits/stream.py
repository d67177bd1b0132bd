"""Streaming: a queue of rows runs a tile at a time, and a row that leaves makes room for the next, so that none waits for another.

Where all iterations share their weights, rows at different depths run side by side in slots that are refilled from the queue. Where
every block has weights of its own, rows that wait for the same block are gathered (`cohorts.py`).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.checks import Stage, batch_size, check_step, positive_integer, shapes, stages_of
from dynexit.core.types import Array, Criterion, Halted, PyTree, Step
from dynexit.exits import loops
from dynexit.exits.cohorts import run_cohorts
from dynexit.exits.rows import read_exit, where_rows, zeros
from dynexit.exits.run import first_memory
from dynexit.exits.tiling import default_tiling

DEFAULT_SLOTS = 16


def run_stream(step: Step, queue: PyTree, depth: int, criterion: Criterion, slots: int | None = None) -> Halted:
    """Runs a queue of rows, `slots` at a time; a row that halts makes room for the next.

    The step is tied where neither its weights nor what it computes depend on `i`; that is found out while tracing. A tied step runs
    on rows at iterations of their own, and the criterion gets `i` as int32 `[S]`. Any other runs block by block on the rows
    that wait for the block, and the criterion gets a scalar `i`.

    Args:
      step: one step, which keeps the state's shape.
      queue: leaves `[M, ...]`.
      depth: blocks at most.
      criterion: when a row leaves.
      slots: rows that run together, S; None for 16. More than M are cut to M.

    Returns:
      `Halted` in the order of the queue, leaves `[M, ...]`; `rows_executed` is S x iterations of the loop for a tied step, and the
      rows of all tiles that ran for another.

    Raises:
      TypeError, ValueError: a sequence of stages, a faulty step or criterion, an empty queue, depth 0, slots below 1.

    Example:
      >>> import dynexit as dx
      >>> double = dx.tied_step(lambda p, h: h * p, lambda p, h: h, jnp.float32(2.0))
      >>> big = dx.Criterion(lambda batch: (), lambda i, output, memory: (output > 8.0, memory))
      >>> dx.run_stream(double, jnp.array([1.0, 5.0, 3.0]), depth=9, criterion=big, slots=2).exit_depth
      Array([4, 1, 2], dtype=int32)
    """
    slots = checked_slots(step, depth, criterion, slots)
    return stream(step, queue, np.int32(batch_size(queue, "queue")), depth, criterion, slots)


def checked_slots(step: Step, depth: int, criterion: Criterion, slots: int | None) -> int:
    """The rows that run together; the other arguments are checked on the way.

    Raises:
      TypeError, ValueError: as in `run_stream`.
    """
    if not isinstance(criterion, Criterion):
        raise TypeError(f"`criterion` must be a dx.Criterion, got {type(criterion).__name__}")
    if isinstance(step, (tuple, list)):
        raise TypeError(
            f"`step` must be one dx.Step, got a sequence of {len(step)}: all rows of a stream wait in buffers of one shape, which "
            "the stages of a network would change; `dx.run_until` takes stages"
        )
    stages_of(step, depth)
    return positive_integer(DEFAULT_SLOTS if slots is None else slots, "slots")


@functools.partial(jax.jit, static_argnames=("depth", "slots"))
def stream(step: Step, queue: PyTree, rows: Array, depth: int, criterion: Criterion, slots: int) -> Halted:
    """`run_stream`, its arguments checked, for the first `rows` (int32 `[]`, traced) of the queue; other results are arbitrary."""
    (stage,) = stages_of(step, depth)
    count = batch_size(queue, "queue")
    slots = min(slots, count)
    _, output = check_step(stage._replace(steps=max(2, stage.steps)), shapes(queue))
    memory = first_memory(criterion, count, output, stage.steps)
    if is_tied(step, queue):
        return _run_slots(stage, queue, rows, criterion, memory, output, slots)
    return run_cohorts(stage, queue, rows, criterion, memory, output, slots, default_tiling(queue, slots, slots))


def is_tied(step: Step, state: PyTree) -> bool:
    """Whether neither the weights of a step nor what it computes with them depend on `i`; traced, not run."""
    several = jax.vmap(lambda i, state: step.apply(step.select(i), i, state), in_axes=(0, None), out_axes=None)
    try:
        jax.eval_shape(several, jnp.arange(2, dtype=jnp.int32), shapes(state))
    except ValueError:  # a result that depends on i cannot leave vmap without an axis for it
        return False
    return True


def _run_slots(
    stage: Stage, queue: PyTree, rows: Array, criterion: Criterion, memory: PyTree, output: PyTree, slots: int
) -> Halted:
    """The tied form: every slot is at an iteration of its own; `rows`, `memory` and `output` as in `run_cohorts`."""
    step, count = stage.step, jax.tree.leaves(queue)[0].shape[0]
    weights = step.select(jnp.int32(0))
    take = lambda tree, index: jax.tree.map(lambda a: a[jnp.clip(index, 0, count - 1)], tree)

    def tick(carry):
        state, memories, row, age, waiting, done, ticks = carry
        new, output = step.apply(weights, age, state)
        leaves, memories, nan = read_exit(criterion, age, age == stage.steps - 1, output, memories)
        busy = row >= 0
        leaves &= busy
        place = jnp.where(leaves, row, count)  # count is out of range: written nowhere
        put = lambda buffer, value: buffer.at[place].set(value, mode="drop")
        kept, exits, states, final, nans = done
        nans = nans.at[jnp.where(busy, row, count)].add(nan.astype(jnp.int32), mode="drop")
        done = (
            jax.tree.map(put, kept, output),
            put(exits, age),
            jax.tree.map(put, states, new),
            jax.tree.map(put, final, memories),
            nans,
        )
        candidate = waiting + jnp.cumsum(leaves, dtype=jnp.int32) - 1
        refill = leaves & (candidate < rows)
        state = where_rows(refill, take(queue, candidate), new)
        memories = where_rows(refill, take(memory, candidate), memories)
        row = jnp.where(leaves, jnp.where(refill, candidate, -1), row)
        return (
            state,
            memories,
            row,
            jnp.where(leaves, 0, age + 1),
            waiting + leaves.sum(dtype=jnp.int32),
            done,
            ticks + 1,
        )

    none = jnp.zeros(count, jnp.int32)
    first = jnp.arange(slots, dtype=jnp.int32)
    done = (zeros(output), none, jax.tree.map(jnp.zeros_like, queue), memory, none)
    start = (
        take(queue, first),
        take(memory, first),
        jnp.where(first < rows, first, -1),
        jnp.zeros(slots, jnp.int32),
        jnp.int32(slots),
        done,
        jnp.int32(0),
    )
    *_, done, ticks = loops.while_loop(lambda carry: (carry[2] >= 0).any(), tick, start)
    kept, exits, states, final, nans = done
    return Halted(kept, exits, (exits + 1) * step.blocks, states, final, nans, ticks * slots)
