"""The KV cache of a recurrent-depth decoder, with one or several iterations per token.

Every block has arrays of its own, with the tokens of a head next to each other. A block writes the
keys and values of the current token before it attends, so it reads the cache alone, and XLA updates
the arrays in place.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from dynexit.core.shapes import Array, Float, Int, PyTree
from dynexit.layers.attention import Projected
from dynexit.layers.grouped_attention import attend_grouped, write_tokens
from dynexit.models.recurrent.recurrent_network import Mix, Network, Pair, causal

Seen: TypeAlias = tuple[Float[Array, "b heads T d"], Float[Array, "b heads T d"]]


class Cache(NamedTuple):
    """Keys and values; each part has a pair of `[B, slots, heads, T, d]` for each block.

    Attributes:
      prelude, coda: with one slot.
      core: iteration i of a token is in slot i mod slots. If all iterations are kept, the slots
        after the last iteration of a token hold that iteration.
      depth: int32 `[B, T]`, number of iterations of each token.
    """

    prelude: tuple[Pair, ...]
    core: tuple[Pair, ...]
    coda: tuple[Pair, ...]
    depth: Int[Array, "B T"]


def empty_cache(
    network: Network, params: PyTree, rows: int, steps: int, slots: int, room: int
) -> Cache:
    """A cache without tokens, for `room` tokens of each row."""
    parts = network.empty(params, rows, slots, room)
    return Cache(*parts, jnp.full((rows, room), steps))


def prefill(
    network: Network,
    params: PyTree,
    prompts: Int[Array, "B P"],
    lengths: Int[Array, "B"],
    steps: int,
    cache: Cache,
) -> tuple[Cache, Float[Array, "B 1 D"], Float[Array, "B V"]]:
    """Runs all prompts at full depth and fills the cache.

    Args:
      network: the decoder.
      params: its parameters.
      prompts: int32 `[B, P]`.
      lengths: int32 `[B]` in 1..P, tokens of each prompt.
      steps: iterations of the core per token.
      cache: has room for P tokens or more.

    Returns:
      The cache, and for the last token of each prompt the state `[B, 1, D]` and the logits
      `[B, V]`.
    """

    def keeping(slot: int | Int[Array, ""]) -> Mix:
        def mix(past: Pair, q: Projected, k: Projected, v: Projected) -> tuple[Projected, Pair]:
            put = lambda a, new: jax.lax.dynamic_update_slice(
                a, jnp.swapaxes(new, 1, 2)[:, None], (0, slot, 0, 0, 0)
            )
            return causal(None, q, k, v)[0], (put(past[0], k), put(past[1], v))

        return mix

    def iterate(i: Array, carry: tuple[Array, tuple[Pair, ...]]) -> tuple[Array, PyTree]:
        s, core = carry
        return network.think(params, s, e, None, keeping(i % core[0][0].shape[1]), core)

    e, prelude = network.read(params, prompts, None, keeping(0), cache.prelude)
    s, core = jax.lax.fori_loop(0, steps, iterate, (jnp.zeros_like(e), cache.core))
    u, coda = network.answer(params, s, None, keeping(0), cache.coda)
    last = lambda a: jnp.take_along_axis(a, (lengths - 1)[:, None, None], axis=1)
    cache = Cache(prelude, core, coda, jnp.full_like(cache.depth, steps))
    return cache, last(s), network.logits(params, last(u)[:, 0])


def cached(
    position: Int[Array, "b"],
    to: Int[Array, "b"],
    slot: int | Int[Array, "b"],
    look: Callable[[Pair], Seen],
) -> Mix:
    """How a block attends from one token per row: it writes the token, then reads the cache.

    Args:
      position: int32 `[b]`, the token of each row.
      to: int32 `[b]`, the rows; B for a padding row, for which nothing is written.
      slot: int32, scalar or `[b]`, slot to write to.
      look: what the rows read of a pair.

    Returns:
      A function `mix` of `Network`.
    """
    slots = jnp.broadcast_to(slot, to.shape)

    def mix(past: Pair, q: Projected, k: Projected, v: Projected) -> tuple[Projected, Pair]:
        put = lambda a, new: write_tokens(a, (to, slots, position), new[:, 0])
        past = put(past[0], k), put(past[1], v)
        keys, values = look(past)
        mask = jnp.arange(keys.shape[2])[None] <= position[:, None]
        return attend_grouped(q, keys, values, mask[:, None]), past

    return mix


def with_row(cache: Cache, row: Int[Array, ""], new: Cache) -> Cache:
    """Replaces one row of the cache by `new`, the cache of a single row."""
    put = lambda a, b: jax.lax.dynamic_update_index_in_dim(a, b[0], row, 0)
    return jax.tree.map(put, cache, new)


def rows_of(pair: Pair, of: Int[Array, "b"]) -> Seen:
    """The keys and values of the rows `of`, from a part with one slot.

    All B rows are in their own order; they are read in place.
    """
    if of.size == pair[0].shape[0]:
        return pair[0][:, 0], pair[1][:, 0]
    look = lambda a: a.at[of, 0].get(mode="promise_in_bounds")
    return look(pair[0]), look(pair[1])


def visible_at(
    pair: Pair,
    i: Int[Array, "B"],
    position: Int[Array, "B"],
    depth: Int[Array, "B T"],
    steps: int,
) -> Seen:
    """The keys and values that attention at iteration i reads, for all rows.

    Of an earlier token with d iterations it reads iteration min(i, d - 1), or the later one that
    overwrote its slot; of the current token it reads iteration i. One slot is read in place. All
    slots are one contiguous copy for each row, of the tokens at its slot.

    Args:
      pair: of a block of the core, `[B, slots, heads, T, d]`.
      i: int32 `[B]`, the iteration of each row.
      position: int32 `[B]`, the current token of each row.
      depth: int32 `[B, T]`, iterations of each token.
      steps: iterations of a token at most.
    """
    rows, slots, _, room, _ = pair[0].shape
    if slots == 1:
        return pair[0][:, 0], pair[1][:, 0]
    if slots == steps:
        look = lambda a: a.at[jnp.arange(rows), i].get(mode="promise_in_bounds")
    else:
        earlier = jnp.arange(room)[None] < position[:, None]
        slot = jnp.where(earlier, jnp.minimum(i[:, None], depth - 1), i[:, None]) % slots
        index = jnp.maximum(slot, 0)[:, None, None, :, None]
        look = lambda a: jnp.take_along_axis(a, index, axis=1)[:, 0]
    return look(pair[0]), look(pair[1])


def with_exits(
    cache: Cache,
    of: Int[Array, "b"],
    to: Int[Array, "b"],
    position: Int[Array, "b"],
    depth: Int[Array, "b"],
    steps: int,
) -> Cache:
    """Records the iterations of a token that has just exited in each of the rows `of`.

    Args:
      cache: the cache.
      of: int32 `[b]`, the rows.
      to: as `of`; B for a padding row.
      position: int32 `[b]`, the token of each row.
      depth: int32 `[b]`, its iterations.
      steps: iterations of a token at most.

    Returns:
      The cache. If all iterations are kept, the later slots of the token hold its last iteration.
    """
    cache = cache._replace(depth=cache.depth.at[to, position].set(depth, mode="drop"))
    slots = cache.core[0][0].shape[1]
    if slots == 1 or slots < steps:
        return cache
    every = jnp.arange(slots)[None]
    later = jnp.where(every < depth[:, None], slots, every)

    def fill(a: Array) -> Array:
        last = a.at[of, depth - 1, :, position].get(mode="promise_in_bounds")
        return a.at[to[:, None], later, :, position[:, None]].set(last[:, None], mode="drop")

    return cache._replace(core=jax.tree.map(fill, cache.core))
