"""Strategies that `dx.run_until` does not have, measured as candidates for a device.

Both process the batch at decreasing sizes B, B/2, B/4, ... and compact the survivors when they fit
into the next size. `shrinking` is one compiled program with a `lax.while_loop` for each size.
`HostLoop` is a Python loop over compiled blocks that reads the number of survivors after each.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from dynexit.core.shapes import Array, Float, Int, PyTree
from dynexit.core.types import Step

Results: TypeAlias = tuple[Array, Array]  # outputs `[B, C]` and exit depths int32 `[B]`


def falling(batch: int, count: int) -> tuple[int, ...]:
    """The sizes B, B/2, B/4, ...: at most `count` sizes, each at least 1."""
    return tuple(batch >> k for k in range(count) if batch >> k)


def shrinking(
    step: Step,
    state: Float[Array, "B ..."],
    depths: Int[Array, "B"],
    depth: int,
    sizes: tuple[int, ...],
) -> tuple[Float[Array, "B C"], Int[Array, "B"], Int[Array, ""]]:
    """Runs rows to prescribed depths, with one while loop for each batch size.

    Args:
      step: with an exit after every block.
      state: `[B, ...]`.
      depths: int32 `[B]`, depth at which each row exits.
      depth: number of blocks.
      sizes: decreasing batch sizes, B first.

    Returns:
      Outputs `[B, C]`, exit depths int32 `[B]`, rows executed int32 `[]`.
    """
    batch = sizes[0]
    results = _results(step, state, depth)
    row = jnp.arange(batch, dtype=jnp.int32)
    i, executed = jnp.int32(0), jnp.int32(0)
    for size, below in zip(sizes, (*sizes[1:], 0), strict=True):

        def go_on(carry: Any, below: int = below) -> Array:
            return (carry[2] < batch).sum() > below

        def body(carry: Any, size: int = size) -> tuple[Any, ...]:
            i, state, row, wanted, results, executed = carry
            state, row, results = _advance(step, depth, i, state, row, wanted, results)
            return i + 1, state, row, wanted, results, executed + size

        carry = (i, state, row, depths, results, executed)
        i, state, row, depths, results, executed = lax.while_loop(go_on, body, carry)
        if below:
            state, row, depths = _regroup(state, row, depths, batch, below)
    outputs, exits = results
    return outputs, exits, executed


class HostLoop:
    """A Python loop over compiled blocks that reads the number of survivors after each block.

    Args:
      make: `make(params) -> Step`, with an exit after every block.
      depth: number of blocks.
      sizes: decreasing batch sizes, B first.
    """

    def __init__(self, make: Callable[[PyTree], Step], depth: int, sizes: tuple[int, ...]) -> None:
        self.depth, self.sizes, batch = depth, sizes, sizes[0]

        @jax.jit
        def advance(
            params: PyTree, i: Array, state: Array, row: Array, wanted: Array, results: Results
        ) -> tuple[Any, ...]:
            done = _advance(make(params), depth, i, state, row, wanted, results)
            return *done, (done[1] < batch).sum()

        self._advance = advance
        self._regroup = jax.jit(_regroup, static_argnums=(3, 4))
        self._results = jax.jit(lambda params, state: _results(make(params), state, depth))

    def __call__(
        self, params: PyTree, state: Float[Array, "B ..."], depths: Int[Array, "B"]
    ) -> tuple[Float[Array, "B C"], Int[Array, "B"], int]:
        """As `shrinking`; the number of rows executed is an int."""
        batch = self.sizes[0]
        results = self._results(params, state)
        row, size, executed = jnp.arange(batch, dtype=jnp.int32), batch, 0
        for i in range(self.depth):
            done = self._advance(params, jnp.int32(i), state, row, depths, results)
            state, row, results, running = done
            executed += size
            running = int(running)
            if not running:
                break
            if (least := min(s for s in self.sizes if s >= running)) < size:
                state, row, depths = self._regroup(state, row, depths, batch, least)
                size = least
        return *results, executed


def _results(step: Step, state: Array, depth: int) -> Results:
    apply = functools.partial(step.apply, step.select(jnp.int32(0)), jnp.int32(0))
    output = jax.eval_shape(apply, state)[1]
    batch = state.shape[0]
    return jnp.zeros(output.shape, output.dtype), jnp.full(batch, depth, jnp.int32)


def _advance(
    step: Step, depth: int, i: Array, state: Array, row: Array, wanted: Array, results: Results
) -> tuple[Array, Array, Results]:
    """One block on all rows of the current size; `row` is B for padding rows."""
    outputs, exits = results
    batch = exits.shape[0]
    state, output = step.apply(step.select(i), i, state)
    fires = (row < batch) & ((wanted <= i + 1) | (i + 1 == depth))
    to = jnp.where(fires, row, batch)
    outputs = outputs.at[to].set(output, mode="drop")
    exits = exits.at[to].set(i + 1, mode="drop")
    return state, jnp.where(fires, batch, row), (outputs, exits)


def _regroup(
    state: Array, row: Array, wanted: Array, batch: int, size: int
) -> tuple[Array, Array, Array]:
    """The survivors first, truncated to `size` rows."""
    order = jnp.argsort(row == batch, stable=True)[:size]
    return state[order], row[order], wanted[order]
