"""What a recurrent-depth decoder remembers of the tokens so far: keys and values, several iterations of each or the last alone."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynexit.backbones.recurrent_network import Network, causal_keeping
from dynexit.core.types import Array, PyTree

Pair = tuple[Array, Array]


class Memory(NamedTuple):
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
    network: Network, params: PyTree, prompts: Array, lengths: Array, steps: int, slots: int, room: int
) -> tuple[Memory, Array, Array]:
    """All prompts at full depth: what is remembered of them, with room for `room` tokens, and the last state and logits of each."""
    rows, length = prompts.shape
    empty = lambda kept, slots: jax.tree.map(lambda a: jnp.zeros((*a.shape[:2], slots, room, *a.shape[3:]), a.dtype), kept)
    fill = lambda pair, slot, kept: jax.tree.map(lambda a, new: a.at[:, :, slot, :length].set(new), pair, kept)
    e, kept = network.read(params, prompts, None, causal_keeping)
    shapes = jax.eval_shape(lambda: network.think(params, e, e, None, causal_keeping)[1])

    def iterate(i: Array, carry: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        s, kept = network.think(params, carry[0], e, None, causal_keeping)
        return s, fill(carry[1], i % slots, kept)

    s, core = jax.lax.fori_loop(0, steps, iterate, (jnp.zeros_like(e), empty(shapes, slots)))
    u, coda = network.answer(params, s, None, causal_keeping)
    depth = jnp.zeros((rows, room), jnp.int32).at[:, :length].set(steps)
    memory = Memory(fill(empty(kept, 1), 0, kept), core, fill(empty(coda, 1), 0, coda), depth)
    last = lambda a: jnp.take_along_axis(a, (lengths - 1)[:, None, None], axis=1)
    return memory, last(s), network.logits(params, last(u)[:, 0])


def last_seen(pair: Pair) -> Pair:
    """Keys and values of a part with one slot, `[blocks, B, L, heads, d]`."""
    return pair[0][:, :, 0], pair[1][:, :, 0]


def seen_at(pair: Pair, i: Array, depth: Array) -> Pair:
    """What iteration i `[B]` sees of every token: its iteration min(i, depth - 1), or the later one that took its slot."""
    slots = pair[0].shape[2]
    if slots == 1:
        return last_seen(pair)
    slot = jnp.maximum(jnp.minimum(i[:, None], depth - 1), 0) % slots
    look = lambda a: jnp.take_along_axis(a, slot[None, :, None, :, None, None], axis=2)[:, :, 0]
    return look(pair[0]), look(pair[1])


def written(pair: Pair, slot: Any, at: Array, kept: Pair) -> Pair:
    """Keys and values `[blocks, B, 1, heads, d]` of the tokens at `at` `[B]`, put in their slot; beyond the end nothing is put."""
    rows = jnp.arange(at.size)
    put = lambda a, new: a.at[:, rows, slot, at].set(new[:, :, 0], mode="drop")
    return put(pair[0], kept[0]), put(pair[1], kept[1])
