"""A peer for the yardstick: `jax.vmap` of a loop over depth written for one row, the way that is
tried first in JAX.

The loop runs until the last row of the batch has stopped. The index of the block is a value of each
row, so with untied weights every step gathers one block's weights per row: B x bytes of a block,
which is what this costs beside the schedule "masked".
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynexit.bench.problems import Cell, Problem
from dynexit.core.types import Array, PyTree, Step

MOST_BYTES = 8 * 2**30  # of gathered weights


class TooLarge(ValueError):
    """A peer would need more memory than it may; the message says how much."""


def gathered_bytes(cell: Cell, problem: Problem) -> int:
    """Bytes of the weights that a step gathers for all rows; 0 where weights are tied.

    With weights narrower than float32 the float32 copies that a CPU computes with are counted too.
    """
    if cell.block == "tied":
        return 0
    wide = lambda dtype: dtype.itemsize if dtype.itemsize >= 4 else dtype.itemsize + 4
    return (
        cell.batch
        * sum(a.size * wide(a.dtype) for a in jax.tree.leaves(problem.params))
        // cell.depth
    )


def vmapped(cell: Cell, problem: Problem, depths: np.ndarray) -> Callable[[], Any]:
    """A call that runs a cell on these depths, int32 `[B]`.

    Raises:
      TooLarge: the gathered weights would be above 8 GiB.
    """
    wanted = gathered_bytes(cell, problem)
    if wanted > MOST_BYTES:
        raise TooLarge(
            f"vmap would gather {wanted / 2**30:.1f} GiB of weights per step (batch {cell.batch}, blocks of width {cell.width}), "
            f"above {MOST_BYTES / 2**30:.1f} GiB"
        )
    wished = jnp.asarray(depths)
    return lambda: _run(problem.params, problem.state, wished, problem.step)


@functools.partial(jax.jit, static_argnames="make")
def _run(params: PyTree, state: Array, depths: Array, make: Callable[[PyTree], Step]) -> Array:
    step = make(params)
    alone = lambda i, h: jax.tree.map(lambda a: a[0], step.apply(step.select(i), i, h[None]))

    def row(h: Array, depth: Array) -> Array:
        output = jax.eval_shape(alone, jnp.int32(0), h)[1]
        start = jnp.int32(0), h, jnp.zeros(output.shape, output.dtype)
        body = lambda carry: (carry[0] + 1, *alone(carry[0], carry[1]))
        return lax.while_loop(lambda carry: carry[0] < depth, body, start)[2]

    return jax.vmap(row)(state, depths)
