"""Attention in which several query heads share the keys and values of one head."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dynexit.core.shapes import Array, Bool, Float, Int
from dynexit.layers.norms import wide

CHUNK = 128  # places of a cache that are read at once where not all are in use


def attend_grouped(
    q: Float[Array, "b Q heads d"],
    k: Float[Array, "b kv K d"],
    v: Float[Array, "b kv K d"],
    mask: Bool[Array, "#b #Q K"] | None = None,
    scale: float | None = None,
    cap: float | None = None,
    used: Int[Array, ""] | None = None,
) -> Float[Array, "b Q heads d"]:
    """softmax(cap tanh(scale q k^T / cap)) v; query heads hG..hG+G-1 read head h of k and v.

    The softmax is computed in float32 or better. Heads come before places in k and v: a cache in
    this layout is read three to five times as fast on a CPU as one with places first.

    Args:
      q: `[b, Q, heads, d]`, heads a multiple of kv.
      k, v: `[b, kv, K, d]`.
      mask: True where a query attends to a key; None for everywhere. A query without any key gets a
        mean of values and no NaN.
      scale: of the scores; None for d^-1/2.
      cap: largest absolute score; None for no limit.
      used: int32, a number of places after which `mask` is False; None for K. A CPU does not read
        the others of a long cache.

    Returns:
      `[b, Q, heads, d]`, in the type of v.

    Example:
      >>> q, v = jnp.zeros((1, 1, 2, 1)), jnp.array([1.0, 3.0]).reshape(1, 1, 2, 1)
      >>> attend_grouped(q, v, v, jnp.ones((1, 1, 2), bool)).ravel().tolist()
      [2.0, 2.0]

    Source: Ainslie et al. 2023, arXiv 2305.13245; the cap is that of Gemma 2, arXiv 2408.00118. The
      softmax over parts of the places is that of Milakov and Gimelshein 2018, arXiv 1805.02867. It
      is divided by its sum after the product with v, which has fewer entries, as in Dao et al.
      2022, arXiv 2205.14135.
    """
    b, queries, heads, d = q.shape
    kv, places = k.shape[1:3]
    shape = b, queries, kv, heads // kv, d
    groups = q.reshape(shape).transpose(0, 2, 3, 1, 4).reshape(b, kv, -1, d)

    def part(k: Array, v: Array, mask: Array | None) -> Softmax:
        scores = wide(_batched(groups, k, 3)) * (scale or d**-0.5)
        if cap is not None:
            scores = cap * jnp.tanh(scores / cap)
        if mask is not None:
            by_query = scores.reshape(b, kv, -1, queries, k.shape[2])
            by_query = jnp.where(mask[:, None, None], by_query, jnp.finfo(scores.dtype).min)
            scores = by_query.reshape(scores.shape)
        most = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
        weights = jnp.exp(scores - most)
        total = weights.sum(-1, keepdims=True)
        return Softmax(most, total, wide(_batched(weights.astype(v.dtype), v, 2)))

    def in_parts(k: Array, v: Array, mask: Array, used: Array) -> Softmax:
        def one(i: Array, before: Softmax) -> Softmax:
            start = jnp.minimum(i * CHUNK, places - CHUNK)  # the last two parts may overlap
            take = lambda a: jax.lax.dynamic_slice_in_dim(a, start, CHUNK, axis=2)
            new = (start + jnp.arange(CHUNK) >= i * CHUNK)[None, None]
            return before.joined(part(take(k), take(v), take(mask) & new))

        like = jax.eval_shape(part, k, v, mask)
        none = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
        none = none._replace(most=jnp.full_like(none.most, jnp.finfo(none.most.dtype).min))
        parts = jnp.clip(-(-used // CHUNK), 1, -(-places // CHUNK))
        return jax.lax.fori_loop(0, parts, one, none)

    if used is None or mask is None or places <= 2 * CHUNK:
        found = part(k, v, mask)
    else:
        whole = lambda k, v, mask, used: part(k, v, mask)
        found = jax.lax.platform_dependent(k, v, mask, used, cpu=in_parts, default=whole)
    y = (found.values / found.total).astype(v.dtype)
    y = y.reshape(b, kv, -1, queries, d).transpose(0, 3, 1, 2, 4)
    return y.reshape(b, queries, heads, d)


class Softmax(NamedTuple):
    """sum_j exp(s_j - m) v_j over some places, and what is needed to add others.

    Attributes:
      most: m, the largest score, `[b, kv, r, 1]`.
      total: sum_j exp(s_j - m), `[b, kv, r, 1]`.
      values: `[b, kv, r, d]`.
    """

    most: Float[Array, "b kv r 1"]
    total: Float[Array, "b kv r 1"]
    values: Float[Array, "b kv r d"]

    def joined(self, other: "Softmax") -> "Softmax":
        """The sum over the places of both."""
        most = jnp.maximum(self.most, other.most)
        mine, its = jnp.exp(self.most - most), jnp.exp(other.most - most)
        total = mine * self.total + its * other.total
        return Softmax(most, total, mine * self.values + its * other.values)


def _batched(a: Array, b: Array, axis: int) -> Array:
    """Products of `[b, kv, m, k]` with the matrices of b, contracted over one of its axes."""
    return jax.lax.dot_general(a, b, (((3,), (axis,)), ((0, 1), (0, 1))))


def write_tokens(
    cache: Float[Array, "B *slots kv T d"],
    at: tuple[Int[Array, "..."], ...],
    new: Float[Array, "*tokens kv d"],
) -> Float[Array, "B *slots kv T d"]:
    """The cache with the keys or values of some tokens; those out of range are dropped.

    XLA fuses a single update with the read that follows it, and copies the cache. A single token
    is therefore written beside one that is out of range.

    Args:
      cache: `[B, kv, T, d]`, or `[B, slots, kv, T, d]`.
      at: rows, slots where there are any, and positions; they broadcast to the shape of the tokens.
      new: `[..., kv, d]`, or of a shape that broadcasts to it.

    Example:
      >>> at = jnp.array([0, 1]), jnp.array([2, 5])
      >>> write_tokens(jnp.zeros((2, 1, 3, 1)), at, jnp.ones((2, 1, 1)))[..., 0].tolist()
      [[[0.0, 0.0, 1.0]], [[0.0, 0.0, 0.0]]]
    """
    *rows, positions = jnp.broadcast_arrays(*at)
    new = jnp.broadcast_to(new, (*positions.shape, *new.shape[-2:])).astype(cache.dtype)
    if positions.size == 1:
        twice = lambda a: jnp.concatenate([a, a])
        rows, new = [twice(a) for a in rows], twice(new)
        positions = jnp.concatenate([positions, jnp.full_like(positions, cache.shape[-2])])
    return cache.at[(*rows, slice(None), positions)].set(new, mode="drop")
