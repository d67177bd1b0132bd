"""One block of the decoder-only transformer; how its tokens attend is an argument."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from dynexit.core.shapes import AnyArray, Array, Float, Int, Key, PyTree
from dynexit.layers.linen import apply_linen
from dynexit.layers.norms import LayerNorm, RMSNorm
from dynexit.layers.projection import project
from dynexit.layers.rotary import rotate
from dynexit.models.language.settings import CausalLM

Places: TypeAlias = Float[Array, "b s D"]
Query: TypeAlias = Float[Array, "b s heads d"]
KeyValue: TypeAlias = Float[Array, "b s kv d"]
Rates: TypeAlias = Float[AnyArray, "_"]
Mix: TypeAlias = Callable[[Query, KeyValue, KeyValue], tuple[Query, PyTree]]
"""`mix(q, k, v) -> (mixed, kept)`: attention, and what is kept of these tokens."""

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": jax.nn.gelu,
}


def normed(s: CausalLM, p: PyTree, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    """The norm of `settings`; `p` is a dict of "weight" and, for a layer norm, "bias"."""
    if s.norm == "layer":
        inner = {"scale": p["weight"], "bias": p["bias"]}
        return apply_linen(LayerNorm(s.norm_epsilon), {"LayerNorm_0": inner}, x)
    weight = p["weight"].astype(jnp.float32)
    scale = 1 + weight if s.norm_offset else weight
    return apply_linen(RMSNorm(s.norm_epsilon), {"scale": scale}, x)


def keys_values(
    s: CausalLM, p: PyTree, rates: Rates, x: Places, positions: Int[Array, "#b s"]
) -> tuple[Places, KeyValue, KeyValue]:
    """The normed input of attention, and the keys and values of every token."""
    n = normed(s, p["norm1"], x)
    split = lambda y: y.reshape(*x.shape[:2], s.kv, s.head)
    k, v = split(project(n, p["key"])), split(project(n, p["value"]))
    k = normed(s, p["key_norm"], k) if s.qk_norm else k
    return n, rotate(k, positions, rates) if s.positions == "rotary" else k, v


def run_block(
    s: CausalLM, p: PyTree, rates: Rates, x: Places, positions: Int[Array, "#b s"], mix: Mix
) -> tuple[Places, PyTree]:
    """The block on tokens at `positions`.

    Args:
      s: the settings.
      p: the block's parameters.
      rates: its rotary frequencies, `[d/2]`.
      x: `[b, s, D]`.
      positions: int32.
      mix: attends.

    Returns:
      The new state `[b, s, D]`, and what `mix` keeps.
    """
    n, k, v = keys_values(s, p, rates, x, positions)
    q = project(n, p["query"]).reshape(*x.shape[:2], s.heads, s.head)
    q = normed(s, p["query_norm"], q) if s.qk_norm else q
    q = rotate(q, positions, rates) if s.positions == "rotary" else q
    mixed, kept = mix(q, k, v)
    a = project(mixed.reshape(*x.shape[:2], -1), p["out"])
    x = x + (normed(s, p["post_norm1"], a) if s.post_norms else a)
    m = mlp(s, p, normed(s, p["norm2"], x))
    return x + (normed(s, p["post_norm2"], m) if s.post_norms else m), kept


def mlp(s: CausalLM, p: PyTree, x: Places) -> Places:
    """down(act(gate x) * up x), or down(act(up x)) without a gate."""
    act, up = ACTIVATIONS[s.activation], project(x, p["up"])
    return project(act(project(x, p["gate"])) * up if s.gated else act(up), p["down"])


def block_shapes(s: CausalLM) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shape of every parameter of a block.

    Example:
      >>> block_shapes(CausalLM(width=8, heads=2))["query"]
      {'weight': (8, 8)}
    """

    def linear(outs: int, ins: int, bias: bool) -> dict[str, tuple[int, ...]]:
        return {"weight": (outs, ins), **({"bias": (outs,)} if bias else {})}

    norm = lambda width: norm_shapes(s, width)
    found = {
        "norm1": norm(s.width),
        "query": linear(s.heads * s.head, s.width, s.qkv_bias),
        "key": linear(s.kv * s.head, s.width, s.qkv_bias),
        "value": linear(s.kv * s.head, s.width, s.qkv_bias),
        "out": linear(s.width, s.heads * s.head, s.out_bias),
        "norm2": norm(s.width),
        "up": linear(s.inner, s.width, s.mlp_bias),
        "down": linear(s.width, s.inner, s.mlp_bias),
    }
    if s.gated:
        found["gate"] = linear(s.inner, s.width, s.mlp_bias)
    if s.qk_norm:
        found |= {"query_norm": norm(s.head), "key_norm": norm(s.head)}
    if s.post_norms:
        found |= {"post_norm1": norm(s.width), "post_norm2": norm(s.width)}
    return found


def norm_shapes(s: CausalLM, width: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a norm's parameters."""
    return {"weight": (width,), **({"bias": (width,)} if s.norm == "layer" else {})}


def initial_block(s: CausalLM, key: Key[Array, ""]) -> PyTree:
    """Draws the parameters of one block: weights N(0, 1 / in), those before the sums smaller by
    sqrt(2 N), zero biases, norms that scale by 1.
    """
    shapes: Any = block_shapes(s)
    keys = dict(zip(sorted(shapes), jax.random.split(key, len(shapes)), strict=True))
    return {name: _initial(s, name, keys[name], parts) for name, parts in shapes.items()}


def initial_norm(s: CausalLM, width: int) -> PyTree:
    """The parameters of a norm that scales by 1."""
    return _initial(s, "norm", jax.random.key(0), norm_shapes(s, width))


def _initial(
    s: CausalLM, name: str, key: Array, parts: dict[str, tuple[int, ...]]
) -> dict[str, Array]:
    weight = parts["weight"]
    if len(weight) == 1:
        drawn = jnp.full(weight, 0.0 if s.norm_offset else 1.0)
    else:
        smaller = 2 * s.depth if name in ("out", "down") else 1
        drawn = jax.random.normal(key, weight) * (weight[1] * smaller) ** -0.5
    bias = {"bias": jnp.zeros(parts["bias"])} if "bias" in parts else {}
    return {"weight": drawn, **bias}
