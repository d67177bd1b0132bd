"""A transformer encoder, pre-norm or post-norm, with an exit after every block.

It covers ViT, DINOv2, BERT and ALBERT, which differ in their embeddings and in which blocks share
weights. Parameters are `{"trunk": {"embed", "block" [N, ...], "norm"}, "head" [N, ...]}`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dynexit.core.shapes import Array, Bool, Float, Int, PyTree, Rows
from dynexit.core.stacking import take
from dynexit.core.types import Model, Step
from dynexit.engine.steps import Run
from dynexit.layers.attention import Heads, attend, attention_mask
from dynexit.layers.dense import Dense
from dynexit.layers.linen import Apply, block_names, initial, initial_stack, merged
from dynexit.layers.mlp import MLP
from dynexit.layers.norms import LayerNorm
from dynexit.layers.pooling import mean_over_places
from dynexit.models.exit_heads import ExitHeads

Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class Block(nn.Module):
    """Attention and an MLP on tokens `[b, L, D]`, each in a residual branch.

    Pre-norm: x = x + s1 attention(norm1(x)); x = x + s2 mlp(norm2(x)). Post-norm: x = norm1(x +
    attention(x)); x = norm2(x + mlp(x)).

    Attributes:
      heads: attention heads.
      hidden: inner width of the MLP.
      activation: of the MLP, a key of `ACTIVATIONS`.
      epsilon: of the norms.
      post_norm: where the norms are.
      qkv_bias: whether queries, keys and values have biases.
      layer_scale: whether there are s1 and s2, `[D]`; else they are 1.
      gated: whether the MLP has a gate.
    """

    heads: int
    hidden: int
    activation: str = "gelu"
    epsilon: float = 1e-12
    post_norm: bool = False
    qkv_bias: bool = True
    layer_scale: bool = False
    gated: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b L D"], real: Bool[Array, "b L"] | None = None
    ) -> Float[Array, "b L D"]:
        bias = "all" if self.qkv_bias else "none"
        heads = merged(self, Heads(self.heads, fused=False, bias=bias))
        out = Dense(x.shape[-1], axes=2, name="out")
        gate = "fused" if self.gated else "none"
        mlp = merged(self, MLP(self.hidden, ACTIVATIONS[self.activation], gate=gate))
        norm1, norm2 = LayerNorm(self.epsilon, name="norm1"), LayerNorm(self.epsilon, name="norm2")

        def attention(x: Array) -> Array:
            q, k, v = heads(x)
            return out(attend(q, k, v, attention_mask(real, x.shape[1])))

        if self.post_norm:
            x = norm1(x + attention(x))
            return norm2(x + mlp(x))
        x = x + self._scaled(attention(norm1(x)), "scale1")
        return x + self._scaled(mlp(norm2(x)), "scale2")

    def _scaled(self, x: Array, name: str) -> Array:
        if not self.layer_scale:
            return x
        scale = self.param(name, nn.initializers.ones, (x.shape[-1],), jnp.float32)
        return x * jnp.expand_dims(scale.astype(x.dtype), (0, 1))


class ExitHead(nn.Module):
    """Logits of tokens `[b, L, D]`: the first token or the mean of the others, then an affine map,
    or an MLP of one hidden layer.
    """

    classes: int
    pool: str
    hidden: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b L D"], real: Bool[Array, "b L"] | None = None
    ) -> Float[Array, "b C"]:
        if self.pool == "cls":
            x = x[:, 0]
        else:
            x = mean_over_places(x[:, 1:], None if real is None else real[:, 1:])
        if self.hidden:
            x = jax.nn.gelu(Dense(self.hidden, name="hidden")(x))
        return Dense(self.classes, name="logits")(x)


class Trunk(NamedTuple):
    """The modules of an encoder.

    Attributes:
      embed: inputs to tokens `[b, L, D]`.
      block: see `Block`.
      norm: what an exit head reads the tokens through; None where blocks are post-norm.
      phase: for each of N blocks the entry of the stacked weights that it reads.
      width: D.
    """

    embed: nn.Module
    block: Block
    norm: LayerNorm | None
    phase: tuple[int, ...]
    width: int


@dataclasses.dataclass(frozen=True)
class Select:
    """The weights of block i, of its exit head, and of the norm that all heads share."""

    phase: tuple[int, ...]

    def __call__(self, params: PyTree, i: int | Int[Array, "..."]) -> PyTree:
        trunk = params["trunk"]
        shared = len(self.phase) != len(set(self.phase))
        k = jnp.asarray(self.phase, jnp.int32)[i] if shared else i
        weights = {"block": take(trunk["block"], k)}
        if "norm" in trunk:
            weights["norm"] = trunk["norm"]
        return weights | ({"head": take(params["head"], i)} if "head" in params else {})


@dataclasses.dataclass(frozen=True)
class Advance:
    """A block on the state: tokens, or a dict of tokens "hidden" and their "mask"."""

    block: Apply

    def __call__(self, weights: PyTree, state: Rows) -> Rows:
        if isinstance(state, dict):
            h = self.block(weights, state["hidden"], state["mask"])
            return {"hidden": h, "mask": state["mask"]}
        return self.block(weights, state)


@dataclasses.dataclass(frozen=True)
class Read:
    """The output of an exit: logits, or the normed tokens where there is no head."""

    norm: Apply | None
    head: Apply | None

    def __call__(self, weights: PyTree, state: Rows) -> Rows:
        masked = isinstance(state, dict)
        h, real = (state["hidden"], (state["mask"],)) if masked else (state, ())
        h = h if self.norm is None else self.norm(weights, h)
        return {"hidden": h} if self.head is None else self.head(weights, h, *real)


def encoder(
    trunk: Trunk,
    example: PyTree,
    begin: Callable[[Apply, PyTree, Rows], Rows],
    classes: int | None,
    heads: ExitHeads,
    weights: PyTree = None,
) -> Model:
    """The model of an encoder.

    Args:
      trunk: its modules.
      example: shapes of the arguments of `trunk.embed`, a tuple.
      begin: `begin(embed, params, inputs)` checks the inputs and makes the first state.
      classes: C; None for no heads, with the tokens as outputs.
      heads: settings of the exit heads.
      weights: the trunk's parameters, host arrays, which `init` copies; None to draw them.

    Returns:
      `Model`; outputs are logits `[E, B, C]`, or `{"hidden": [E, B, L, D]}` without heads.
    """
    embed, block = Apply(trunk.embed, "embed"), Apply(trunk.block, "block")
    norm = None if trunk.norm is None else Apply(trunk.norm, "norm")
    head = None
    if classes is not None:
        head = Apply(ExitHead(classes, heads.pool, heads.hidden), "head")
    depth, tokens = len(trunk.phase), jax.ShapeDtypeStruct((1, 2, trunk.width), jnp.float32)

    def drawn(key: Array) -> PyTree:
        keys = jax.random.split(key, 2)
        parts = {
            "embed": initial(trunk.embed, keys[0], *example),
            "block": initial_stack(trunk.block, keys[1], tokens, max(trunk.phase) + 1),
        }
        return parts if norm is None else {**parts, "norm": initial(norm.module, key, tokens)}

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, 2)
        held = drawn(keys[0]) if weights is None else jax.tree.map(jnp.asarray, weights)
        if head is None:
            return {"trunk": held}
        return {"trunk": held, "head": initial_stack(head.module, keys[1], tokens, depth)}

    def steps(params: PyTree) -> Step:
        select: Any = Partial(Select(trunk.phase), params)
        return Step(select, Partial(Run(Advance(block), Read(norm, head))), depth=depth)

    first = lambda params, inputs: begin(embed, params["trunk"], inputs)
    return Model(init, first, steps, depth, block_names(depth))
