"""A peer for the benchmark: `jax.vmap` of a while loop over depth that is written for one row.

The loop runs until the last row of the batch exits. The block index differs between rows, so with
untied weights every step gathers the weights of one block per row, B x bytes of a block. This is
its additional cost compared with the executor "masked".
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dynexit.bench.problems import Cell, Problem
from dynexit.core.shapes import Array, Int, PyTree, Rows
from dynexit.core.types import Step
from dynexit.engine.rows import zeros

MOST_BYTES = 8 * 2**30  # of gathered weights


class TooLarge(ValueError):
    """A peer needs more memory than its limit."""


def gathered_bytes(cell: Cell, problem: Problem) -> int:
    """Bytes of the weights that a step gathers for all rows; 0 for tied weights.

    For weights narrower than float32, the float32 copies that a CPU computes with are included.

    Args:
      cell: the network and batch.
      problem: its weights and rows.

    Returns:
      The number of bytes.
    """
    if cell.block == "tied":
        return 0
    size = lambda dtype: dtype.itemsize if dtype.itemsize >= 4 else dtype.itemsize + 4
    total = sum(a.size * size(a.dtype) for a in jax.tree.leaves(problem.params))
    return cell.batch * total // cell.depth


def vmapped(cell: Cell, problem: Problem, depths: Int[np.ndarray, "B"]) -> Callable[[], Any]:
    """A call that runs a cell with `jax.vmap` of a while loop.

    Args:
      cell: the network and batch.
      problem: its weights and rows.
      depths: int32 `[B]`, depth at which each row exits.

    Returns:
      A function without arguments that returns the outputs, leaves `[B, ...]`.

    Raises:
      TooLarge: the gathered weights would exceed 8 GiB.
    """
    wanted = gathered_bytes(cell, problem)
    if wanted > MOST_BYTES:
        raise TooLarge(
            f"vmap would gather {wanted / 2**30:.1f} GiB of weights per step (batch {cell.batch}, "
            f"blocks of width {cell.width}), above the limit of {MOST_BYTES / 2**30:.1f} GiB"
        )
    on_device = jnp.asarray(depths)
    return lambda: _run(problem.params, problem.state, on_device, problem.step)


@functools.partial(jax.jit, static_argnames="make")
def _run(params: PyTree, state: Rows, depths: Array, make: Callable[[PyTree], Step]) -> Rows:
    step = make(params)

    def one_row(i: Array, h: PyTree) -> PyTree:
        alone = jax.tree.map(lambda a: a[None], h)
        return jax.tree.map(lambda a: a[0], step.apply(step.select(i), i, alone))

    def row(h: PyTree, depth: Array) -> PyTree:
        output = jax.eval_shape(one_row, jnp.int32(0), h)[1]
        start = jnp.int32(0), h, zeros(output)
        body = lambda carry: (carry[0] + 1, *one_row(carry[0], carry[1]))
        return lax.while_loop(lambda carry: carry[0] < depth, body, start)[2]

    return jax.vmap(row)(state, depths)
