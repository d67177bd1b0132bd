"""A vision transformer of few blocks, each applied several times; distilled from a deep one."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dynexit.core.settings import refuse_invalid, refuse_unfit
from dynexit.core.shapes import AnyArray, Array, Float, Int, Num, PyTree, Shaped
from dynexit.core.stacking import take
from dynexit.core.types import Model, Step
from dynexit.layers.attention import SelfAttention
from dynexit.layers.dense import Dense
from dynexit.layers.heads import LogitsHead
from dynexit.layers.inputs import check_input
from dynexit.layers.linen import Apply, block_names, initial, initial_stack, merged
from dynexit.layers.mlp import MLP
from dynexit.layers.norms import LayerNorm
from dynexit.models.distilled.settings import BlockRecurrent
from dynexit.models.vision.vit import Embed
from dynexit.solvers.fixed_point import relative_residual


class DepthScale(nn.Module):
    """Three vectors near 1, `[b, 1, D]` each, of the layer's index t `[b]`."""

    width: int

    @nn.compact
    def __call__(self, t: Num[Array, "b"], dtype: Any) -> list[Float[Array, "b 1 D"]]:
        small = nn.initializers.normal(1e-4)
        hidden = nn.silu(Dense(16, name="in")(t.astype(dtype)[:, None]))
        out = Dense(3 * self.width, kernel_init=small, bias_init=small, name="out")
        return jnp.split((1 + out(hidden))[:, None], 3, axis=-1)


class Block(nn.Module):
    """Pre-norm attention and MLP on `[b, L, D]`, scaled by the layer's index t `[b]`."""

    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "b L D"], t: Num[Array, "b"]) -> Float[Array, "b L D"]:
        attention = merged(self, SelfAttention(self.heads))
        inner = merged(self, MLP(4 * x.shape[-1]))
        first, second, whole = DepthScale(x.shape[-1], name="depth")(t, x.dtype)
        x = x + first * attention(LayerNorm(name="norm1")(x))
        x = x + second * inner(LayerNorm(name="norm2")(x))
        return whole * x


@dataclasses.dataclass(frozen=True)
class Select:
    """The weights of layer i: the block of its phase, and its own head."""

    phase: tuple[int, ...]

    def __call__(self, params: PyTree, i: int | Int[Array, "..."]) -> PyTree:
        block = take(params["blocks"], jnp.asarray(self.phase, jnp.int32)[i])
        return {"block": block, "head": take(params["heads"], i)}


@dataclasses.dataclass(frozen=True)
class Layer:
    """Layer i: its block, its head, and the relative change that the block made."""

    block: Apply
    head: Apply

    def __call__(
        self, weights: PyTree, i: int | Int[Array, "..."], x: Float[Array, "b L D"]
    ) -> tuple[Float[Array, "b L D"], PyTree]:
        new = self.block(weights, x, jnp.broadcast_to(i + 1, x.shape[:1]))
        residual = relative_residual(x, new).astype(new.dtype)
        return new, {"logits": self.head(weights, new), "residual": residual}


def block_recurrent(
    settings: BlockRecurrent, image: tuple[int, ...], classes: int, teacher: PyTree
) -> Model:
    """Builds the model of `dx.models.BlockRecurrent`."""
    refuse_invalid(settings)
    refuse_unfit(settings, image, classes)
    counts, depth = settings.counts, sum(settings.counts)
    if teacher is not None and (found := jax.tree.leaves(teacher["blocks"])[0].shape[0]) != depth:
        raise ValueError(
            f"`teacher` must have as many blocks as `counts` sums to, {depth}, got {found}"
        )
    patch, stride = settings.patch, settings.stride or settings.patch
    embed = Apply(Embed(patch, stride, settings.width), "embed")
    block = Apply(Block(settings.heads), "block")
    head = Apply(LogitsHead(classes, pool="mean"), "head")
    phase = tuple(int(j) for j in np.repeat(np.arange(len(counts)), counts))
    pixels = jax.ShapeDtypeStruct((1, *image), jnp.float32)

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, 3)
        if teacher is None:
            first = initial(embed.module, keys[0], pixels)
        else:
            first = jax.tree.map(jnp.array, teacher["embed"])
        tokens = jax.eval_shape(embed, {"embed": first}, pixels)
        draw = jax.vmap(lambda k: initial(block.module, k, tokens, jnp.zeros(1)))
        if teacher is None:
            heads = initial_stack(head.module, keys[2], tokens, depth)
        else:
            heads = jax.tree.map(jnp.array, teacher["blocks"]["head"])
        blocks = draw(jax.random.split(keys[1], len(counts)))
        return {"embed": first, "blocks": blocks, "heads": heads}

    def begin(params: PyTree, images: Shaped[AnyArray, "B ..."]) -> Array:
        check_input(images, image, "images")
        return embed(params, images)

    def steps(params: PyTree) -> Step:
        select = Partial(Select(phase), {"blocks": params["blocks"], "heads": params["heads"]})
        return Step(select, Partial(Layer(block, head)), depth=depth)

    return Model(init, begin, steps, depth, block_names(depth))
