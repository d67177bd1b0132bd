"""Vision transformer with an exit after every block (Dosovitskiy et al., 2021, arXiv 2010.11929;
pre-norm, mean pooling).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.settings import refuse_invalid, refuse_unfit
from dynexit.core.types import Model
from dynexit.engine.steps import stacked_step
from dynexit.layers.parts import (
    Apply,
    Norm,
    attend,
    block_names,
    check_input,
    initial,
    initial_stack,
)
from dynexit.models.vision.settings import Vit


class Embed(nn.Module):
    """Patches of images `[b, H, W, C]`, cut out every `stride` pixels, as tokens `[b, L, D]`, with
    learned positions.
    """

    patch: int
    stride: int
    width: int

    @nn.compact
    def __call__(self, images):
        p, s = self.patch, self.stride
        at = lambda size: np.arange(0, size - p + 1, s)[:, None] + np.arange(p)  # [patches, p]
        rows, columns = at(images.shape[1]), at(images.shape[2])
        patches = images[
            :, rows[:, None, :, None], columns[None, :, None, :]
        ]  # [b, patches, patches, p, p, C]
        tokens = nn.Dense(self.width, dtype=images.dtype, name="patches")(
            patches.reshape(images.shape[0], rows.shape[0] * columns.shape[0], -1)
        )
        positions = self.param(
            "positions", nn.initializers.normal(0.02), (tokens.shape[1], self.width)
        )
        return tokens + positions.astype(tokens.dtype)[None]


class Block(nn.Module):
    """Pre-norm attention and MLP on tokens `[b, L, D]`."""

    heads: int

    @nn.compact
    def __call__(self, x):
        b, length, width = x.shape
        dense = lambda features, name: nn.Dense(features, dtype=x.dtype, name=name)
        split = lambda t: t.reshape(b, length, self.heads, width // self.heads)
        q, k, v = map(split, jnp.split(dense(3 * width, "qkv")(Norm(name="norm1")(x)), 3, axis=-1))
        x = x + dense(width, "out")(attend(q, k, v))
        return x + dense(width, "down")(nn.gelu(dense(4 * width, "up")(Norm(name="norm2")(x))))


class Head(nn.Module):
    """Exit head: mean over tokens, norm, linear; `[b, L, D]` to logits `[b, C]`."""

    classes: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.classes, dtype=x.dtype, name="logits")(
            Norm(name="norm")(x.mean(axis=1))
        )


def vit(settings: Vit, image: tuple[int, ...], classes: int) -> Model:
    """The model of `dx.models.Vit`, see there."""
    refuse_invalid(settings)
    refuse_unfit(settings, image, classes)
    patch, width, depth, heads = settings.patch, settings.width, settings.depth, settings.heads
    stride = settings.stride or patch
    embed, block, head = (
        Embed(patch, stride, width),
        Apply(Block(heads), "block"),
        Apply(Head(classes), "head"),
    )
    pixels = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    count = ((image[0] - patch) // stride + 1) * ((image[1] - patch) // stride + 1)
    tokens = jax.ShapeDtypeStruct((1, count, width), jnp.float32)

    def init(key):
        keys = jax.random.split(key, 3)
        blocks = {
            "block": initial_stack(block.module, keys[1], tokens, depth),
            "head": initial_stack(head.module, keys[2], tokens, depth),
        }
        return {"embed": initial(embed, keys[0], pixels), "blocks": blocks}

    def embed_images(params, images):
        check_input(images, image, "images")
        return embed.apply({"params": params["embed"]}, images)

    return Model(
        init,
        embed_images,
        lambda params: stacked_step(block, head, params["blocks"]),
        depth,
        block_names(depth),
    )
