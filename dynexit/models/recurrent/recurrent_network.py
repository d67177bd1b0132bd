"""The recurrent-depth decoder as pure functions: read tokens, iterate a state, read the state. How
it attends is an argument.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.stacking import length, take
from dynexit.core.types import Array, PyTree, Step
from dynexit.engine.run import run_all
from dynexit.layers.parts import attend, initial, initial_stack
from dynexit.solvers.fixed_point import relative_residual

ROPE_BASE = 50_000.0
Mix = Callable[[PyTree, Array, Array, Array], tuple[Array, PyTree]]
"""`mix(past, q, k, v) -> (mixed, kept)`: attends, with what a block remembers, and says what is to
be kept of these tokens.
"""


def causal(past: PyTree, q: Array, k: Array, v: Array) -> tuple[Array, None]:
    """All tokens at once, each looking at itself and at those before; nothing is kept."""
    return attend(q, k, v, jnp.tril(jnp.ones((q.shape[1], q.shape[1]), bool))), None


def causal_keeping(past: PyTree, q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, Array]]:
    """As `causal`; keys and values `[b, L, heads, d]` are kept."""
    return causal(past, q, k, v)[0], (k, v)


class RMSNorm(nn.Module):
    """x / rms(x) x scale over the last axis, in float32."""

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-6)
        return (normed * jnp.expand_dims(scale.astype(jnp.float32), range(x.ndim - 1))).astype(
            x.dtype
        )


class Sandwich(nn.Module):
    """A block whose residual stream is normalised twice: x <- n2(Attn(n1 x) + x); x <- n4(MLP(n3 x)
    + x). RoPE, SwiGLU.
    """

    heads: int
    deviation: float
    output_deviation: float

    @nn.compact
    def __call__(self, x, positions=None, mix=functools.partial(causal, None)):
        b, length, width = x.shape
        positions = jnp.arange(length)[None] if positions is None else positions
        dense = lambda features, name, deviation=self.deviation, bias=False: nn.Dense(
            features,
            use_bias=bias,
            dtype=x.dtype,
            kernel_init=nn.initializers.normal(deviation),
            name=name,
        )
        split = lambda t: t.reshape(b, length, self.heads, width // self.heads)
        h = RMSNorm(name="norm1")(x)
        q, k = (
            rotated(split(dense(width, name, bias=True)(h)), positions) for name in ("query", "key")
        )
        mixed, kept = mix(q, k, split(dense(width, "value")(h)))
        x = RMSNorm(name="norm2")(x + dense(width, "out", self.output_deviation)(mixed))
        h = RMSNorm(name="norm3")(x)
        gated = nn.silu(dense(4 * width, "gate")(h)) * dense(4 * width, "up")(h)
        return RMSNorm(name="norm4")(x + dense(width, "down", self.output_deviation)(gated)), kept


def rotated(x: Array, positions: Array) -> Array:
    """Rotary positions: pairs of channels of `[b, L, heads, d]` turned by angles that grow with
    `positions`, `[b or 1, L]`.
    """
    half = x.shape[-1] // 2
    rate = ROPE_BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = (positions[..., None].astype(jnp.float32) * rate[None, None])[:, :, None]
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    turned = [a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle)]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class Network:
    """e = prelude(gamma Emb(x)); s <- core(A [s; e]); logits = Emb n(coda(n(s))); sizes as in
    `recurrent_depth`.

    The three parts take `positions` (`[b or 1, L]`), `mix` and a `past` with one entry a block,
    leaves `[blocks, ...]`, and return what `mix` keeps beside their result, leaves `[blocks, ...]`.
    """

    vocabulary: int
    width: int
    heads: int
    prelude: int
    core: int
    coda: int
    mean_steps: int

    @property
    def deviation(self) -> float:
        """Of the initial weights, sqrt(2 / (5 D))."""
        return math.sqrt(2 / (5 * self.width))

    @property
    def block(self) -> Sandwich:
        """The one shape of all blocks."""
        blocks = self.prelude + self.coda + self.core * self.mean_steps
        return Sandwich(self.heads, self.deviation, self.deviation / math.sqrt(2 * blocks))

    def init(self, key: Array) -> PyTree:
        """Parameters; the key is consumed."""
        keys = jax.random.split(key, 6)
        x = jnp.zeros((1, 2, self.width))
        draw = lambda key, *shape: self.deviation * jax.random.normal(key, shape)
        core = initial_stack(self.block, keys[3], x, self.core)
        return {
            "embed": draw(keys[0], self.vocabulary, self.width),
            "prelude": initial_stack(self.block, keys[1], x, self.prelude),
            "block": {"adapter": draw(keys[2], 2 * self.width, self.width), "core": core},
            "norm": initial(RMSNorm(), keys[4], x),
            "coda": initial_stack(self.block, keys[5], x, self.coda),
        }

    def read(
        self,
        params: PyTree,
        tokens: Array,
        positions: Array | None = None,
        mix: Mix = causal,
        past: PyTree = None,
    ) -> tuple[Array, PyTree]:
        """The prelude: e `[b, L, D]` of tokens `[b, L]`."""
        x = math.sqrt(self.width) * params["embed"][tokens]
        return self._through(params["prelude"], x, positions, mix, past)

    def think(
        self,
        params: PyTree,
        s: Array,
        e: Array,
        positions: Array | None = None,
        mix: Mix = causal,
        past: PyTree = None,
    ) -> tuple[Array, PyTree]:
        """One iteration of the core, `[b, L, D]`."""
        x = jnp.concatenate([s, e], axis=-1) @ params["block"]["adapter"]
        return self._through(params["block"]["core"], x, positions, mix, past)

    def answer(
        self,
        params: PyTree,
        s: Array,
        positions: Array | None = None,
        mix: Mix = causal,
        past: PyTree = None,
    ) -> tuple[Array, PyTree]:
        """The coda: `[b, L, D]`, of which `logits` are a linear map."""
        u, kept = self._through(params["coda"], self._normed(params, s), positions, mix, past)
        return self._normed(params, u), kept

    def logits(self, params: PyTree, u: Array) -> Array:
        """`[..., V]` of what the coda gave, `[..., D]`."""
        return u @ params["embed"].T

    def embed(self, params: PyTree, inputs: PyTree) -> PyTree:
        """`Model.embed`: inputs are tokens, or a dict of "tokens" and "h"."""
        if isinstance(inputs, dict) and set(inputs) != {"tokens", "h"}:
            raise ValueError(
                f"`inputs` must be tokens or a dict of 'tokens' and 'h', got the keys {sorted(inputs)}"
            )
        tokens = inputs["tokens"] if isinstance(inputs, dict) else inputs
        check_tokens(tokens, "inputs")
        e, _ = self.read(params, tokens)
        h = inputs["h"].astype(e.dtype) if isinstance(inputs, dict) else jnp.zeros_like(e)
        if h.shape != e.shape:
            raise ValueError(f'`inputs["h"]` must have shape {list(e.shape)}, got {list(h.shape)}')
        return {"input": e, "h": h, "change": jnp.ones(e.shape[:2], jnp.float32)}

    def iterate(self, params: PyTree, state: PyTree) -> PyTree:
        """One iteration of the model's state."""
        h, _ = self.think(params, state["h"], state["input"])
        return {
            "input": state["input"],
            "h": h,
            "change": jax.vmap(relative_residual)(state["h"], h),
        }

    def residual(self, params: PyTree, state: PyTree) -> PyTree:
        """How far the state moved, of every place."""
        return {"residual": state["change"]}

    def head(self, params: PyTree, state: PyTree) -> PyTree:
        """Logits of every place."""
        return {"logits": self.logits(params, self.answer(params, state["h"])[0])}

    def _normed(self, params: PyTree, x: Array) -> Any:
        return RMSNorm().apply({"params": params["norm"]}, x)

    def _through(
        self, blocks: PyTree, x: Array, positions: Array | None, mix: Mix, past: PyTree
    ) -> tuple[Array, PyTree]:
        def apply(block: tuple[PyTree, PyTree], i: Any, x: Array) -> tuple[Array, PyTree]:
            x, kept = self.block.apply(
                {"params": block[0]}, x, positions, functools.partial(mix, block[1])
            )
            return x, (x, kept)

        weights = blocks, past
        xs, kept = run_all(
            Step(functools.partial(take, weights), apply), x, length(blocks, "blocks")
        )
        return xs[-1], kept


@dataclasses.dataclass(frozen=True)
class Part:
    """A method of a network as a function; those of equal networks are equal, as bound methods are
    not, and compile once.
    """

    network: Network
    name: str

    def __call__(self, params: PyTree, state: PyTree) -> PyTree:
        return getattr(self.network, self.name)(params, state)


def check_tokens(tokens: Any, name: str) -> None:
    """Refuses what is not integers `[B, L]`.

    Raises:
      ValueError: naming `name`.
    """
    if jnp.ndim(tokens) != 2 or not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
        raise ValueError(
            f"`{name}` must be integers [B, L], got {jnp.result_type(tokens)}{list(jnp.shape(tokens))}"
        )
