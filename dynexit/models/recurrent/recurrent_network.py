"""The recurrent-depth decoder as pure functions; how its blocks attend is an argument."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.shapes import AnyArray, Array, Bool, Float, Int, Key, PyTree, Rows
from dynexit.core.stacking import length, take, unstack
from dynexit.core.types import Step
from dynexit.engine.run import run_all
from dynexit.layers.attention import Heads, Projected, attend, attention_mask
from dynexit.layers.dense import Dense
from dynexit.layers.inputs import check_tokens, read_tokens
from dynexit.layers.linen import apply_linen, initial, initial_stack, merged
from dynexit.layers.mlp import MLP
from dynexit.layers.norms import RMSNorm
from dynexit.solvers.fixed_point import relative_residual

ROPE_BASE = 50_000.0
Places: TypeAlias = Float[Array, "b L D"]
Positions: TypeAlias = Int[Array, "#b L"] | None
Slots: TypeAlias = Float[Array, "B _slots heads T d"]
Pair: TypeAlias = tuple[Slots, Slots]  # keys and values of all rows
Mix: TypeAlias = Callable[[PyTree, Projected, Projected, Projected], tuple[Projected, PyTree]]
"""`mix(past, q, k, v) -> (mixed, kept)`: attends, with what a block remembers, and returns what is
to be kept of these tokens.
"""


def causal(
    past: PyTree,
    q: Projected,
    k: Projected,
    v: Projected,
    real: Bool[Array, "b L"] | None = None,
) -> tuple[Projected, None]:
    """All tokens at once, each attending to itself and to those before; nothing is kept.

    Tokens attend to no place where `real`, bool `[b, L]`, is False.
    """
    return attend(q, k, v, attention_mask(real, q.shape[1], causal=True)), None


class Sandwich(nn.Module):
    """A block that normalises its residual stream before and after each branch.

    x <- n2(attention(n1 x) + x); x <- n4(mlp(n3 x) + x), with rotary positions and SwiGLU.
    """

    heads: int
    deviation: float
    output_deviation: float

    @nn.compact
    def __call__(
        self,
        x: Places,
        positions: Positions = None,
        mix: Callable[..., tuple[Projected, PyTree]] = functools.partial(causal, None),
    ) -> tuple[Places, PyTree]:
        width = x.shape[-1]
        draw = nn.initializers.normal(self.deviation)
        draw_out = nn.initializers.normal(self.output_deviation)
        project = Heads(self.heads, False, "query_key", ROPE_BASE, draw)
        out = Dense(width, axes=2, bias=False, kernel_init=draw_out, name="out")
        inner = MLP(4 * width, nn.silu, "separate", False, draw, draw_out)
        mixed, kept = mix(*merged(self, project)(RMSNorm(name="norm1")(x), positions))
        x = RMSNorm(name="norm2")(x + out(mixed))
        x = RMSNorm(name="norm4")(x + merged(self, inner)(RMSNorm(name="norm3")(x)))
        return x, kept


@dataclasses.dataclass(frozen=True)
class Network:
    """e = prelude(gamma Emb(x)); s <- core(A [s; e]); logits = Emb n(coda(n(s))).

    `read`, `think` and `answer` take `positions` (`[b or 1, L]`), `mix` and a `past`, a tuple with
    one entry a block. They return what `mix` keeps beside their result, a tuple as well. With a
    `past` the parameters must be those of `unstack`; without one nothing is kept.

    Attributes:
      vocabulary: V.
      width, heads, prelude, core, coda, mean_steps, padding: as in `dx.models.RecurrentDepth`.
    """

    vocabulary: int
    width: int
    heads: int
    prelude: int
    core: int
    coda: int
    mean_steps: int
    padding: int | None = None

    @property
    def deviation(self) -> float:
        """Of the initial weights, sqrt(2 / (5 D))."""
        return math.sqrt(2 / (5 * self.width))

    @property
    def block(self) -> Sandwich:
        """The module of all blocks."""
        blocks = self.prelude + self.coda + self.core * self.mean_steps
        return Sandwich(self.heads, self.deviation, self.deviation / math.sqrt(2 * blocks))

    def init(self, key: Key[Array, ""]) -> PyTree:
        """Draws the parameters; the key is consumed."""
        keys = jax.random.split(key, 6)
        x = jnp.zeros((1, 2, self.width))
        draw = lambda key, *shape: self.deviation * jax.random.normal(key, shape, jnp.float32)
        core = initial_stack(self.block, keys[3], x, self.core)
        return {
            "embed": draw(keys[0], self.vocabulary, self.width),
            "prelude": initial_stack(self.block, keys[1], x, self.prelude),
            "block": {"adapter": draw(keys[2], 2 * self.width, self.width), "core": core},
            "norm": initial(RMSNorm(), keys[4], x),
            "coda": initial_stack(self.block, keys[5], x, self.coda),
        }

    def unstack(self, params: PyTree) -> PyTree:
        """The parameters with a list of blocks in place of every stack.

        In a loop over tokens the index of a stack copies the weights of the block.
        """
        block = {**params["block"], "core": unstack(params["block"]["core"])}
        ends = {name: unstack(params[name]) for name in ("prelude", "coda")}
        return {**params, **ends, "block": block}

    def empty(
        self, params: PyTree, rows: int, slots: int, room: int
    ) -> tuple[tuple[Pair, ...], tuple[Pair, ...], tuple[Pair, ...]]:
        """Zeros for the keys and values of prelude, core and coda, a pair for each block.

        The core has `slots` for its iterations, the others one.
        """
        sizes = self.heads, room, self.width // self.heads
        array = lambda slots: jnp.zeros((rows, slots, *sizes), params["embed"].dtype)
        part = lambda blocks, slots: tuple((array(slots), array(slots)) for _ in range(blocks))
        return part(self.prelude, 1), part(self.core, slots), part(self.coda, 1)

    def read(
        self,
        params: PyTree,
        tokens: Int[AnyArray, "b L"],
        positions: Positions = None,
        mix: Mix = causal,
        past: PyTree = None,
    ) -> tuple[Places, PyTree]:
        """The prelude: e `[b, L, D]` of tokens `[b, L]`."""
        return self.begin(params, self.embedded(params, tokens), positions, mix, past)

    def embedded(self, params: PyTree, tokens: Int[AnyArray, "b L"]) -> Places:
        """gamma Emb(x), `[b, L, D]`."""
        return math.sqrt(self.width) * params["embed"][tokens]

    def begin(
        self,
        params: PyTree,
        x: Places,
        positions: Positions = None,
        mix: Mix = causal,
        past: PyTree = None,
    ) -> tuple[Places, PyTree]:
        """The prelude of embedded tokens."""
        return self._through(params["prelude"], x, positions, mix, past)

    def think(
        self,
        params: PyTree,
        s: Places,
        e: Places,
        positions: Positions = None,
        mix: Mix = causal,
        past: PyTree = None,
    ) -> tuple[Places, PyTree]:
        """One iteration of the core, `[b, L, D]`."""
        x = jnp.concatenate([s, e], axis=-1) @ params["block"]["adapter"]
        return self._through(params["block"]["core"], x, positions, mix, past)

    def answer(
        self,
        params: PyTree,
        s: Places,
        positions: Positions = None,
        mix: Mix = causal,
        past: PyTree = None,
    ) -> tuple[Places, PyTree]:
        """The coda: `[b, L, D]`, of which `logits` are a linear map."""
        u, kept = self._through(params["coda"], self._normed(params, s), positions, mix, past)
        return self._normed(params, u), kept

    def logits(self, params: PyTree, u: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """`[..., V]` of the coda's `[..., D]`."""
        return u @ params["embed"].T

    def embed(self, params: PyTree, inputs: Rows) -> Rows:
        """`Model.embed`: inputs are tokens, or a dict of "tokens" and optionally "h" and "mask"."""
        tokens, real, others = read_tokens(inputs, self.padding, ("h",))
        check_tokens(tokens, "inputs")
        e, _ = self.read(params, tokens, None, functools.partial(causal, real=real))
        h = others["h"].astype(e.dtype) if "h" in others else jnp.zeros_like(e)
        if h.shape != e.shape:
            raise ValueError(f'`inputs["h"]` must have shape {list(e.shape)}, got {list(h.shape)}')
        state = {"input": e, "h": h, "change": jnp.ones(e.shape[:2], jnp.float32)}
        return state if real is None else {**state, "mask": real}

    def iterate(self, params: PyTree, state: Rows) -> Rows:
        """One iteration of the model's state."""
        real = state.get("mask")
        mix = functools.partial(causal, real=real)
        h, _ = self.think(params, state["h"], state["input"], None, mix)
        change = jax.vmap(relative_residual)(state["h"], h)
        change = change if real is None else jnp.where(real, change, 0)
        return {**state, "h": h, "change": change}

    def residual(self, params: PyTree, state: Rows) -> Rows:
        """How far the state of every place moved."""
        mask = {"mask": state["mask"]} if "mask" in state else {}
        return {"residual": state["change"], **mask}

    def head(self, params: PyTree, state: Rows) -> Rows:
        """Logits of every place."""
        mix = functools.partial(causal, real=state.get("mask"))
        return {"logits": self.logits(params, self.answer(params, state["h"], None, mix)[0])}

    def _normed(self, params: PyTree, x: Array) -> Array:
        return apply_linen(RMSNorm(), params["norm"], x)

    def _through(
        self, blocks: PyTree, x: Array, positions: Positions, mix: Mix, past: PyTree
    ) -> tuple[Array, PyTree]:
        if past is None:
            apply = lambda block, i, x: (self._block(block, x, positions, mix, None)[0],) * 2
            step = Step(functools.partial(take, blocks), apply)
            return run_all(step, x, length(blocks, "blocks"))[-1], None
        kept: list[PyTree] = []
        for block, entry in zip(blocks, past, strict=True):
            x, new = self._block(block, x, positions, mix, entry)
            kept.append(new)
        return x, tuple(kept)

    def _block(
        self, block: PyTree, x: Array, positions: Positions, mix: Mix, past: PyTree
    ) -> tuple[Array, PyTree]:
        return apply_linen(self.block, block, x, positions, functools.partial(mix, past))


@dataclasses.dataclass(frozen=True)
class Part:
    """A method of a network as a function.

    Those of equal networks are equal, as bound methods are not, and so compile once.
    """

    network: Network
    name: str

    def __call__(self, params: PyTree, state: Rows) -> Rows:
        return getattr(self.network, self.name)(params, state)
