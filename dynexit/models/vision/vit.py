"""Vision transformer with an exit after every block."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.settings import refuse_invalid, refuse_unfit
from dynexit.core.shapes import AnyArray, Array, Float, PyTree, Shaped
from dynexit.core.types import Model
from dynexit.engine.steps import stacked_step
from dynexit.layers.attention import SelfAttention
from dynexit.layers.dense import Dense
from dynexit.layers.heads import LogitsHead
from dynexit.layers.inputs import check_input, patches
from dynexit.layers.linen import Apply, block_names, initial, initial_stack, merged
from dynexit.layers.mlp import MLP
from dynexit.layers.norms import LayerNorm
from dynexit.models.vision.settings import Vit


class Embed(nn.Module):
    """Patches of images `[b, H, W, C]` as tokens `[b, L, D]`, with learned positions."""

    patch: int
    stride: int
    width: int

    @nn.compact
    def __call__(self, images: Float[AnyArray, "b H W C"]) -> Float[Array, "b L D"]:
        cut = patches(images, self.patch, self.stride)
        tokens = Dense(self.width, name="patches")(cut.reshape(cut.shape[0], -1, cut.shape[-1]))
        shape = tokens.shape[1], self.width
        positions = self.param("positions", nn.initializers.normal(0.02), shape, jnp.float32)
        return tokens + positions.astype(tokens.dtype)[None]


class Block(nn.Module):
    """Pre-norm attention and MLP on tokens `[b, L, D]`."""

    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "b L D"]) -> Float[Array, "b L D"]:
        attention = merged(self, SelfAttention(self.heads))
        inner = merged(self, MLP(4 * x.shape[-1]))
        x = x + attention(LayerNorm(name="norm1")(x))
        return x + inner(LayerNorm(name="norm2")(x))


def vit(settings: Vit, image: tuple[int, ...], classes: int) -> Model:
    """Builds the model of `dx.models.Vit`."""
    refuse_invalid(settings)
    refuse_unfit(settings, image, classes)
    patch, width, depth = settings.patch, settings.width, settings.depth
    stride = settings.stride or patch
    embed = Apply(Embed(patch, stride, width), "embed")
    block = Apply(Block(settings.heads), "block")
    head = Apply(LogitsHead(classes, pool="mean"), "head")
    pixels = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    count = ((image[0] - patch) // stride + 1) * ((image[1] - patch) // stride + 1)
    tokens = jax.ShapeDtypeStruct((1, count, width), jnp.float32)

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, 3)
        blocks = {
            "block": initial_stack(block.module, keys[1], tokens, depth),
            "head": initial_stack(head.module, keys[2], tokens, depth),
        }
        return {"embed": initial(embed.module, keys[0], pixels), "blocks": blocks}

    def begin(params: PyTree, images: Shaped[AnyArray, "B ..."]) -> Array:
        check_input(images, image, "images")
        return embed(params, images)

    steps = lambda params: stacked_step(block, head, params["blocks"])
    return Model(init, begin, steps, depth, block_names(depth))
