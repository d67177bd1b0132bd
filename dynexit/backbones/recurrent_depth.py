"""Recurrent depth (Huginn): a prelude reads the tokens, one core is iterated on a latent state, a coda reads the state."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.backbones.parts import Apply, attend, initial, initial_stack
from dynexit.core.checks import positive_integer
from dynexit.core.stacking import length
from dynexit.core.types import Array, Model, PyTree
from dynexit.exits import run_full, stacked_step, tied_step
from dynexit.exits.fixed_point import relative_residual

ROPE_BASE = 50_000.0


class RMSNorm(nn.Module):
    """x / rms(x) x scale over the last axis, in float32."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-6)
        return (normed * jnp.expand_dims(scale.astype(jnp.float32), range(x.ndim - 1))).astype(x.dtype)


class Sandwich(nn.Module):
    """A block whose residual stream is normalised twice: x <- n2(Attn(n1 x) + x); x <- n4(MLP(n3 x) + x). Causal, RoPE, SwiGLU."""

    heads: int
    deviation: float
    output_deviation: float

    @nn.compact
    def __call__(self, x):
        b, length, width = x.shape
        dense = lambda features, name, deviation=self.deviation, bias=False: nn.Dense(
            features, use_bias=bias, dtype=x.dtype, kernel_init=nn.initializers.normal(deviation), name=name
        )
        split = lambda t: t.reshape(b, length, self.heads, width // self.heads)
        h = RMSNorm(name="norm1")(x)
        q, k = (rotated(split(dense(width, name, bias=True)(h))) for name in ("query", "key"))
        v = split(dense(width, "value")(h))
        mixed = attend(q, k, v, jnp.tril(jnp.ones((length, length), bool)))
        x = RMSNorm(name="norm2")(x + dense(width, "out", self.output_deviation)(mixed))
        h = RMSNorm(name="norm3")(x)
        gated = nn.silu(dense(4 * width, "gate")(h)) * dense(4 * width, "up")(h)
        return RMSNorm(name="norm4")(x + dense(width, "down", self.output_deviation)(gated))


def rotated(x: Array) -> Array:
    """Rotary positions: pairs of channels of `[b, L, heads, d]` turned by angles that grow with the position."""
    half = x.shape[-1] // 2
    rate = ROPE_BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = (jnp.arange(x.shape[1], dtype=jnp.float32)[:, None] * rate[None])[None, :, None]
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    turned = [a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle)]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def recurrent_depth(
    vocabulary: int, *, width: int, heads: int, steps: int, prelude: int = 1, core: int = 1, coda: int = 1, mean_steps: int = 8
) -> Model:
    """A decoder whose middle is iterated: any number of iterations at test time, with the weights of one.

    e = prelude(gamma Emb(x)); s_0 = 0; s_{i+1} = core(A [s_i; e]); logits = Emb n(coda(n(s))), gamma = sqrt(D), one norm n.

    Args:
      vocabulary: V.
      width: D, a multiple of `heads`, and even a head.
      heads: attention heads.
      steps: N, the most iterations of the core.
      prelude, core, coda: blocks l_P, l_R and l_C.
      mean_steps: iterations expected in training, for the scale of the initial output projections alone.

    Returns:
      A weight-tied `Model`: inputs int32 `[B, L]`, or `{"tokens": [B, L], "h": [B, L, D]}` with the state to begin with, for a warm
      start; outputs `{"logits": [E, B, L, V], "residual": [E, B, L]}`, the logits in the parameters' type and beside them
      ||s_i - s_{i-1}|| / ||s_i||. State: "input" (e), which no step changes, "h" (s) and "change", the residual. Without a warm
      start s is 0; training may start it elsewhere (`dx.methods.recurrent_depth`).

    Raises:
      ValueError, TypeError: a number below 1, `width` not a multiple of 2 x `heads`.

    Example:
      >>> model = recurrent_depth(50, width=16, heads=2, steps=4)
      >>> params = model.init(jax.random.key(0))
      >>> model.embed(params, jnp.zeros((3, 7), jnp.int32))["h"].shape
      (3, 7, 16)

    Source: Geiping et al. 2025, arXiv 2502.05171, and its released code: sandwich norm, biases on queries and keys alone, tied
    embedding, weights N(0, 2 / (5 D)) and output projections smaller by sqrt(2 l_eff). Deviations: s_0 = 0 at inference, so
    that answers are repeatable, where the release draws it, or begins with the state of the token before ("h" does that).
    """
    sizes = dict(vocabulary=vocabulary, width=width, heads=heads, steps=steps, prelude=prelude, core=core, coda=coda)
    for name, value in sizes.items():
        positive_integer(value, name)
    if width % (2 * heads):
        raise ValueError(f"`width` must be a multiple of 2 x `heads` = {2 * heads}, got {width}")
    deviation = math.sqrt(2 / (5 * width))
    blocks = prelude + coda + core * mean_steps
    block, norm = Sandwich(heads, deviation, deviation / math.sqrt(2 * blocks)), RMSNorm()

    def normed(params: PyTree, x: Array) -> Any:
        return norm.apply({"params": params}, x)

    def through(params: PyTree, x: Any) -> Any:
        return run_full(stacked_step(Apply(block, "block"), _state, {"block": params}), x, length(params, "params"))[0]

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, 6)
        x = jnp.zeros((1, 2, width))
        stack = lambda key, count: initial_stack(block, key, x, count)
        draw = lambda key, *shape: deviation * jax.random.normal(key, shape)
        return {
            "embed": draw(keys[0], vocabulary, width),
            "prelude": stack(keys[1], prelude),
            "block": {"adapter": draw(keys[2], 2 * width, width), "core": stack(keys[3], core)},
            "norm": initial(norm, keys[4], x),
            "coda": stack(keys[5], coda),
        }

    def embed(params: PyTree, inputs: PyTree) -> PyTree:
        if isinstance(inputs, dict) and set(inputs) != {"tokens", "h"}:
            raise ValueError(f"`inputs` must be tokens or a dict of 'tokens' and 'h', got the keys {sorted(inputs)}")
        tokens = inputs["tokens"] if isinstance(inputs, dict) else inputs
        if jnp.ndim(tokens) != 2 or not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
            raise ValueError(f"`inputs` must be integers [B, L], got {jnp.result_type(tokens)}{list(jnp.shape(tokens))}")
        e = through(params["prelude"], math.sqrt(width) * params["embed"][tokens])
        h = inputs["h"].astype(e.dtype) if isinstance(inputs, dict) else jnp.zeros_like(e)
        if h.shape != e.shape:
            raise ValueError(f'`inputs["h"]` must have shape {list(e.shape)}, got {list(h.shape)}')
        return {"input": e, "h": h, "change": jnp.ones(e.shape[:2], jnp.float32)}

    def iterate(params: PyTree, state: PyTree) -> PyTree:
        both = jnp.concatenate([state["h"], state["input"]], axis=-1)
        h = through(params["block"]["core"], both @ params["block"]["adapter"])
        return {"input": state["input"], "h": h, "change": jax.vmap(relative_residual)(state["h"], h)}

    def head(params: PyTree, state: PyTree) -> PyTree:
        u = through(params["coda"], normed(params["norm"], state["h"]))
        return {"logits": normed(params["norm"], u) @ params["embed"].T, "residual": state["change"]}

    names = tuple(f"step{i:02d}" for i in range(steps))
    return Model(init, embed, lambda params: tied_step(iterate, head, params), steps, names)


def _state(p: PyTree, x: Array) -> Array:
    return x
