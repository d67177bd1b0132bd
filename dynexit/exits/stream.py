"""Streaming: a few slots, refilled from a queue as their rows halt, so that no slot waits for another."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from dynexit.core.checks import batch_size, check_step, positive_integer, shapes, stages_of
from dynexit.core.types import Criterion, Halted, PyTree, Step
from dynexit.exits.rows import read_exit, where_rows, zeros
from dynexit.exits.run import first_memory

DEFAULT_SLOTS = 16


def run_stream(step: Step, queue: PyTree, depth: int, criterion: Criterion, slots: int | None = None) -> Halted:
    """Runs a queue of rows through a weight-tied step, `slots` at a time; a row that halts makes room for the next.

    Args:
      step: a step with tied weights (`dx.tied_step`): every slot is at an iteration of its own, so `apply` and the criterion get
        `i` as int32 `[S]`, and `select` is called once, with 0.
      queue: leaves `[M, ...]`.
      depth: iterations at most.
      criterion: when a row leaves.
      slots: rows in flight, S; None for 16. More than M are cut to M.

    Returns:
      `Halted` in the order of the queue, leaves `[M, ...]`; `rows_executed` is S x iterations of the loop.

    Raises:
      TypeError, ValueError: a sequence of stages, a faulty step or criterion, an empty queue, depth 0, slots below 1.

    Example:
      >>> import dynexit as dx
      >>> double = dx.tied_step(lambda p, h: h * p, lambda p, h: h, jnp.float32(2.0))
      >>> big = dx.Criterion(lambda batch: (), lambda i, output, memory: (output > 8.0, memory))
      >>> dx.run_stream(double, jnp.array([1.0, 5.0, 3.0]), depth=9, criterion=big, slots=2).exit_depth
      Array([4, 1, 2], dtype=int32)
    """
    if not isinstance(criterion, Criterion):
        raise TypeError(f"`criterion` must be a dx.Criterion, got {type(criterion).__name__}")
    if isinstance(step, (tuple, list)):
        raise TypeError("`step` must be one weight-tied dx.Step; stages of different shapes cannot share slots")
    stages_of(step, depth)
    slots = positive_integer(DEFAULT_SLOTS if slots is None else slots, "slots")
    return _run_stream(step, queue, depth, criterion, slots)


@functools.partial(jax.jit, static_argnames=("depth", "slots"))
def _run_stream(step, queue, depth, criterion, slots) -> Halted:
    (stage,) = stages_of(step, depth)
    count = batch_size(queue, "queue")
    slots = min(slots, count)
    _, output = check_step(stage._replace(steps=2), shapes(queue))
    memory = first_memory(criterion, count, output, stage.steps)
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
        refill = leaves & (candidate < count)
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
        first,
        jnp.zeros(slots, jnp.int32),
        jnp.int32(slots),
        done,
        jnp.int32(0),
    )
    *_, done, ticks = lax.while_loop(lambda carry: (carry[2] >= 0).any(), tick, start)
    kept, exits, states, final, nans = done
    return Halted(kept, exits, (exits + 1) * step.blocks, states, final, nans, ticks * slots)
