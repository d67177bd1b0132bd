"""The KV cache of a recurrent-depth decoder, with one or several iterations per token."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from dynexit.core.shapes import Array, Float, Int, PyTree
from dynexit.core.types import Step
from dynexit.engine.run import run_all, run_full
from dynexit.models.recurrent.recurrent_network import Network, causal_keeping

_Slots: TypeAlias = Float[Array, "blocks B slots L heads d"]
_Places: TypeAlias = Float[Array, "blocks b L heads d"]
Part: TypeAlias = tuple[_Slots, _Slots]  # keys and values of all rows
Kept: TypeAlias = tuple[_Places, _Places]  # of some rows, one of each token


class Cache(NamedTuple):
    """Keys and values; each part is a pair of `[blocks, B, slots, L, heads, d]`.

    Attributes:
      prelude, coda: with one slot.
      core: iteration i of a token is in slot i mod slots.
      depth: int32 `[B, L]`, number of iterations of each token.
    """

    prelude: Part
    core: Part
    coda: Part
    depth: Int[Array, "B L"]


def prefill(
    network: Network,
    params: PyTree,
    prompts: Int[Array, "B P"],
    lengths: Int[Array, "B"],
    steps: int,
    slots: int,
    room: int,
) -> tuple[Cache, Float[Array, "B 1 D"], Float[Array, "B V"]]:
    """Runs all prompts at full depth and fills the cache.

    Args:
      network: the decoder.
      params: its parameters.
      prompts: int32 `[B, P]`.
      lengths: int32 `[B]` in 1..P, tokens of each prompt.
      steps: iterations of the core per token.
      slots: iterations whose keys and values are kept, in 1..steps.
      room: tokens for which the cache has room, at least P.

    Returns:
      The cache, and for the last token of each prompt the state `[B, 1, D]` and the logits
      `[B, V]`.
    """
    rows, length = prompts.shape
    e, prelude = network.read(params, prompts, None, causal_keeping)
    s = jnp.zeros_like(e)
    if steps > slots:  # iterations that are not kept
        s, _ = run_full(_core(network, params, e), s, steps - slots)
    states, core = run_all(_core(network, params, e), s, slots)
    # iteration i goes to slot i mod slots
    core = jax.tree.map(lambda a: jnp.roll(jnp.swapaxes(a, 0, 2), steps, axis=2), core)
    u, coda = network.answer(params, states[-1], None, causal_keeping)
    pad = lambda a: jnp.pad(a, [(0, room - length) if axis == 3 else (0, 0) for axis in range(6)])
    one_slot = lambda kept: jax.tree.map(lambda a: a[:, :, None], kept)
    prelude, core, coda = jax.tree.map(pad, (one_slot(prelude), core, one_slot(coda)))
    last = lambda a: jnp.take_along_axis(a, (lengths - 1)[:, None, None], axis=1)
    cache = Cache(prelude, core, coda, jnp.full((rows, room), steps))
    return cache, last(states[-1]), network.logits(params, last(u)[:, 0])


def _core(network: Network, params: PyTree, e: Array) -> Step:
    """The core on whole prompts; the output is the new state with its keys and values."""

    def apply(params: PyTree, i: Array, s: Array) -> tuple[Array, PyTree]:
        s, kept = network.think(params, s, e, None, causal_keeping)
        return s, (s, jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), kept))  # rows first

    return Step(lambda i: params, apply)


def one_slot_of(pair: Part, rows: Int[Array, "b"]) -> Kept:
    """Keys and values of some rows, from a part of the cache with one slot.

    Args:
      pair: the part, `[blocks, B, 1, L, heads, d]`.
      rows: int32 `[b]`.

    Returns:
      A pair of `[blocks, b, L, heads, d]`.
    """
    return pair[0][:, rows, 0], pair[1][:, rows, 0]


def visible_at(pair: Part, i: Int[Array, "B"], depth: Int[Array, "B L"]) -> Kept:
    """Keys and values that attention at iteration i reads, for all rows.

    Of a token with d iterations it reads iteration min(i, d - 1), or the later one that overwrote
    its slot.

    Args:
      pair: the core's part of the cache, `[blocks, B, slots, L, heads, d]`.
      i: int32 `[B]`, the iteration of each row.
      depth: int32 `[B, L]`, iterations of each token.

    Returns:
      A pair of `[blocks, B, L, heads, d]`.
    """
    slots = pair[0].shape[2]
    if slots == 1:
        return pair[0][:, :, 0], pair[1][:, :, 0]
    slot = jnp.maximum(jnp.minimum(i[:, None], depth - 1), 0) % slots
    look = lambda a: jnp.take_along_axis(a, slot[None, :, None, :, None, None], axis=2)[:, :, 0]
    return look(pair[0]), look(pair[1])


class Pending(NamedTuple):
    """Keys and values of the last token of each row that are not yet in the cache.

    They are written at the start of the next iteration. XLA does not order a write after a read in
    the same iteration, and copies the whole cache instead.

    Attributes:
      kept: keys and values `[blocks, B, 1, heads, d]`.
      slot: int32 `[B]`, slot to write to.
      position: int32 `[B]`, token to write to; L for none.
    """

    kept: Kept
    slot: Int[Array, "B"]
    position: Int[Array, "B"]


def no_pending(pair: Part) -> Pending:
    """An empty `Pending` for a part of the cache."""
    rows, _, room = pair[0].shape[1:4]
    return Pending(
        jax.tree.map(lambda a: jnp.zeros_like(a[:, :, 0, :1]), pair),
        jnp.zeros(rows, jnp.int32),
        jnp.full(rows, room),
    )


def with_pending(
    pending: Pending,
    to: Int[Array, "b"],
    slot: int | Int[Array, ""] | Int[Array, "b"],
    position: Int[Array, "b"],
    kept: Kept,
) -> Pending:
    """Replaces the pending keys and values of some rows.

    Args:
      pending: the pending entries of all rows.
      to: int32 `[b]`, the rows; B for a padding row.
      slot: int32, scalar or `[b]`.
      position: int32 `[b]`.
      kept: keys and values `[blocks, b, 1, heads, d]`.

    Returns:
      A `Pending` of all rows.
    """
    new = Pending(kept, jnp.broadcast_to(slot, position.shape), position)
    put = lambda a, b: (
        a.at[:, to].set(b, mode="drop") if a.ndim > 1 else a.at[to].set(b, mode="drop")
    )
    return jax.tree.map(put, pending, new)


def write_pending(pair: Part, pending: Pending) -> Part:
    """Writes the pending keys and values of all rows to a part of the cache; idempotent."""
    rows = jnp.arange(pending.position.size)
    return jax.tree.map(
        lambda a, new: a.at[:, rows, pending.slot, pending.position].set(new[:, :, 0], mode="drop"),
        pair,
        pending.kept,
    )
