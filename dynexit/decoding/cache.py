"""What a recurrent-depth decoder remembers of the tokens so far: keys and values, several
iterations of each or the last alone.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynexit.core.types import Array, PyTree, Step
from dynexit.engine.run import run_all, run_full
from dynexit.models.recurrent.recurrent_network import Network, causal_keeping

Pair = tuple[Array, Array]


class Cache(NamedTuple):
    """Keys and values, for each part a pair of `[blocks, B, slots, L, heads, d]`.

    Attributes:
      prelude, coda: of one slot.
      core: iteration i of a token is in slot i mod slots.
      depth: int32 `[B, L]`, iterations that each token took.
    """

    prelude: Pair
    core: Pair
    coda: Pair
    depth: Array


def read_prompts(
    network: Network,
    params: PyTree,
    prompts: Array,
    lengths: Array,
    steps: int,
    slots: int,
    room: int,
) -> tuple[Cache, Array, Array]:
    """All prompts at full depth: what is remembered of them, with room for `room` tokens, and the
    last state and logits of each.
    """
    rows, length = prompts.shape
    e, prelude = network.read(params, prompts, None, causal_keeping)
    s = jnp.zeros_like(e)
    if steps > slots:  # of which nothing is kept
        s, _ = run_full(_core(network, params, e), s, steps - slots)
    states, core = run_all(_core(network, params, e), s, slots)
    core = jax.tree.map(
        lambda a: jnp.roll(jnp.swapaxes(a, 0, 2), steps, axis=2), core
    )  # iteration i in slot i mod slots
    u, coda = network.answer(params, states[-1], None, causal_keeping)
    roomy = lambda a: jnp.pad(a, [(0, room - length) if axis == 3 else (0, 0) for axis in range(6)])
    alone = lambda kept: jax.tree.map(lambda a: a[:, :, None], kept)
    prelude, core, coda = jax.tree.map(roomy, (alone(prelude), core, alone(coda)))
    last = lambda a: jnp.take_along_axis(a, (lengths - 1)[:, None, None], axis=1)
    depth = jnp.full((rows, room), steps)
    return (
        Cache(prelude, core, coda, depth),
        last(states[-1]),
        network.logits(params, last(u)[:, 0]),
    )


def _core(network: Network, params: PyTree, e: Array) -> Step:
    """The core on whole prompts, each iteration's state and what is kept of it as the output."""

    def apply(params: PyTree, i: Any, s: Array) -> tuple[Array, PyTree]:
        s, kept = network.think(params, s, e, None, causal_keeping)
        return s, (s, jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), kept))  # rows first

    return Step(lambda i: params, apply)


def last_seen(pair: Pair, of: Array) -> Pair:
    """Keys and values of a part with one slot, of the rows `of` `[b]`: `[blocks, b, L, heads, d]`."""
    return pair[0][:, of, 0], pair[1][:, of, 0]


def seen_at(pair: Pair, i: Array, depth: Array) -> Pair:
    """What iteration i `[B]` sees of every token: its iteration min(i, depth - 1), or the later one
    that took its slot.
    """
    slots = pair[0].shape[2]
    if slots == 1:
        return pair[0][:, :, 0], pair[1][:, :, 0]
    slot = jnp.maximum(jnp.minimum(i[:, None], depth - 1), 0) % slots
    look = lambda a: jnp.take_along_axis(a, slot[None, :, None, :, None, None], axis=2)[:, :, 0]
    return look(pair[0]), look(pair[1])


class Fresh(NamedTuple):
    """What each row's last token gave, on its way into the cache.

    It is put there at the beginning of the next turn: XLA does not order a write after a read of
      the same turn, and copies the
    whole cache instead.

    Attributes:
      kept: keys and values `[blocks, B, 1, heads, d]`.
      slot, at: int32 `[B]`, where they belong; beyond the last token for nowhere.
    """

    kept: Pair
    slot: Array
    at: Array


def nothing_fresh(pair: Pair) -> Fresh:
    """Of a part of the cache, before the first turn."""
    rows, _, room = pair[0].shape[1:4]
    return Fresh(
        jax.tree.map(lambda a: jnp.zeros_like(a[:, :, 0, :1]), pair),
        jnp.zeros(rows, jnp.int32),
        jnp.full(rows, room),
    )


def held(fresh: Fresh, to: Array, slot: Any, at: Array, kept: Pair) -> Fresh:
    """With the keys and values `[blocks, b, 1, heads, d]` of tokens `at` `[b]` of the rows `to`; of
    no row beyond the last.
    """
    new = Fresh(kept, jnp.broadcast_to(slot, at.shape), at)
    put = lambda a, b: (
        a.at[:, to].set(b, mode="drop") if a.ndim > 1 else a.at[to].set(b, mode="drop")
    )
    return jax.tree.map(put, fresh, new)


def written(pair: Pair, fresh: Fresh) -> Pair:
    """A part of the cache with what is fresh of all rows in its place; a second time changes
    nothing.
    """
    rows = jnp.arange(fresh.at.size)
    return jax.tree.map(
        lambda a, new: a.at[:, rows, fresh.slot, fresh.at].set(new[:, :, 0], mode="drop"),
        pair,
        fresh.kept,
    )
