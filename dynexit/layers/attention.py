"""Attention with several heads; queries, keys and values are on axes of their own."""

from collections.abc import Callable
from typing import Literal, TypeAlias

import flax.linen as nn
import jax.numpy as jnp

from dynexit.core.shapes import Array, Bool, Float, Int
from dynexit.layers.dense import Dense
from dynexit.layers.grouped_attention import attend_grouped
from dynexit.layers.linen import merged
from dynexit.layers.rotary import rotary

Projected: TypeAlias = Float[Array, "b L heads d"]


def attend(
    q: Float[Array, "b Q heads d"],
    k: Float[Array, "b K heads d"],
    v: Float[Array, "b K heads d"],
    mask: Bool[Array, "#Q K"] | Bool[Array, "#b #Q K"] | None = None,
) -> Float[Array, "b Q heads d"]:
    """softmax(q k^T / sqrt(d)) v for each head; the softmax is computed in float32 or better.

    Args:
      q: `[b, Q, heads, d]`.
      k, v: `[b, K, heads, d]`.
      mask: bool `[Q, K]` or `[b, Q, K]` (Q may be 1), True where a query attends to a key; None
        for everywhere. A query without any key gets the mean of all values and no NaN.

    Returns:
      `[b, Q, heads, d]`, in the type of v.

    Example:
      >>> q, v = jnp.zeros((1, 2, 1, 1)), jnp.array([1.0, 3.0]).reshape(1, 2, 1, 1)
      >>> attend(q, q, v, causal_mask(2)).ravel().tolist()
      [1.0, 2.0]

    Source: Vaswani et al. 2017, arXiv 1706.03762.
    """
    heads_first = lambda a: jnp.swapaxes(a, 1, 2)
    mask = mask[None] if mask is not None and mask.ndim == 2 else mask
    return attend_grouped(q, heads_first(k), heads_first(v), mask)


def causal_mask(length: int) -> Bool[Array, "L L"]:
    """Bool `[L, L]`: every place attends to itself and to those before it.

    Example:
      >>> causal_mask(2).tolist()
      [[True, False], [True, True]]
    """
    return jnp.tril(jnp.ones((length, length), bool))


def attention_mask(
    real: Bool[Array, "b L"] | None, length: int, causal: bool = False
) -> Bool[Array, "_ _ L"] | None:
    """The mask of `attend` for sequences with padding.

    Args:
      real: bool `[b, L]`, False at padded places, which no place attends to; None for no padding.
      length: L.
      causal: whether places attend to earlier ones and themselves alone.

    Returns:
      Bool `[1 or b, 1 or L, L]`, or None where every place attends to every place.

    Example:
      >>> attention_mask(jnp.array([[True, True, False]]), 3).tolist()
      [[[True, True, False]]]
    """
    if real is None:
        return causal_mask(length)[None] if causal else None
    return real[:, None] & causal_mask(length)[None] if causal else real[:, None]


class Heads(nn.Module):
    """Queries, keys and values of x `[b, L, D]`: three arrays `[b, L, heads, D / heads]`.

    Attributes:
      heads: attention heads; must divide D.
      fused: one kernel "qkv" `[D, 3, heads, d]`; else "query", "key" and "value" `[D, heads, d]`.
      bias: which of them have a bias; "query_key" goes with separate kernels.
      rotary_base: base of rotary positions on queries and keys; None for none.
      kernel_init: initialiser of the kernels.

    Example:
      >>> import jax
      >>> q, k, v = Heads(2).init_with_output(jax.random.key(0), jnp.ones((1, 3, 8)))[0]
      >>> q.shape
      (1, 3, 2, 4)
    """

    heads: int
    fused: bool = True
    bias: Literal["all", "query_key", "none"] = "all"
    rotary_base: float | None = None
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b L D"], positions: Int[Array, "#b L"] | None = None
    ) -> tuple[Projected, Projected, Projected]:
        size = self.heads, x.shape[-1] // self.heads
        draw = self.kernel_init
        if self.fused:
            qkv = Dense((3, *size), bias=self.bias == "all", kernel_init=draw, name="qkv")(x)
            q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        else:
            first, last = self.bias != "none", self.bias == "all"
            q, k, v = (
                Dense(size, bias=bias, kernel_init=draw, name=name)(x)
                for name, bias in (("query", first), ("key", first), ("value", last))
            )
        if self.rotary_base is not None:
            positions = jnp.arange(x.shape[1])[None] if positions is None else positions
            q, k = (rotary(a, positions, self.rotary_base) for a in (q, k))
        return q, k, v


class SelfAttention(nn.Module):
    """Attention of the places of x `[b, L, D]` to each other, and an output projection.

    Parameters: those of `Heads`, and "out" with the kernel `[heads, d, D]`.

    Attributes:
      heads, fused, bias, rotary_base, kernel_init: as in `Heads`; the output projection has a
        bias with "all".
      causal: whether places attend to earlier ones and themselves alone.

    Example:
      >>> import jax
      >>> attention = SelfAttention(2, causal=True)
      >>> x = jnp.ones((1, 3, 8))
      >>> params = attention.init(jax.random.key(0), x)
      >>> attention.apply(params, x, jnp.array([[True, True, False]])).shape
      (1, 3, 8)

    Source: Vaswani et al. 2017, arXiv 1706.03762.
    """

    heads: int
    fused: bool = True
    bias: Literal["all", "query_key", "none"] = "all"
    rotary_base: float | None = None
    causal: bool = False
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self, x: Float[Array, "b L D"], real: Bool[Array, "b L"] | None = None
    ) -> Float[Array, "b L D"]:
        """`real`, bool `[b, L]`, is False at padded places, which no place attends to."""
        heads = Heads(self.heads, self.fused, self.bias, self.rotary_base, self.kernel_init)
        q, k, v = merged(self, heads)(x)
        mixed = attend(q, k, v, attention_mask(real, x.shape[1], self.causal))
        out = Dense(
            x.shape[-1],
            axes=2,
            bias=self.bias == "all",
            kernel_init=self.kernel_init,
            name="out",
        )
        return out(mixed)
