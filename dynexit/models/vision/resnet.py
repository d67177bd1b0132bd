"""Residual network as stages of different shapes, with an exit after every block."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.settings import refuse_invalid, refuse_unfit
from dynexit.core.shapes import AnyArray, Array, Float, PyTree, Shaped
from dynexit.core.types import Model, Step
from dynexit.engine.steps import stacked_step
from dynexit.layers.convolution import Convolution
from dynexit.layers.dense import Dense
from dynexit.layers.inputs import check_input
from dynexit.layers.linen import Apply, block_names, initial, initial_stack
from dynexit.layers.norms import GroupNorm, LayerNorm
from dynexit.models.vision.settings import Resnet

HIDDEN = 32  # width of an exit head


class Stem(nn.Module):
    """The first convolution, of stride 2: `[b, H, W, C]` to `[b, H/2, W/2, channels]`."""

    channels: int

    @nn.compact
    def __call__(self, images: Float[AnyArray, "b H W C"]) -> Float[Array, "b h w c"]:
        return Convolution(self.channels, stride=2, name="conv")(images)


class Block(nn.Module):
    """Norm, ReLU, convolution, twice, added to a shortcut.

    The shortcut is the identity, or a 1 x 1 convolution where the block changes the shape.
    """

    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "b H W C"]) -> Float[Array, "b h w c"]:
        c, stride = self.channels, self.stride
        h = nn.relu(GroupNorm(name="norm1")(x))
        if stride > 1 or x.shape[-1] != c:
            x = Convolution(c, window=1, stride=stride, name="shortcut")(h)
        h = Convolution(c, stride=stride, name="conv1")(h)
        return x + Convolution(c, name="conv2")(nn.relu(GroupNorm(name="norm2")(h)))


class Head(nn.Module):
    """Exit head on the whole map `[b, h, w, c]`: a hidden layer of 32, norm, ReLU, linear.

    A row pays for every inner exit that it passes; full depth alone pays for one. A matrix product
    on the flat map costs about 5% of a block; normalising and pooling the map first, as published
    heads do, took 20% of a block's time on two CPU cores.
    """

    classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b C"]:
        h = Dense(HIDDEN, name="hidden")(x.reshape(x.shape[0], -1))
        return Dense(self.classes, name="logits")(nn.relu(LayerNorm(name="norm")(h)))


def resnet(settings: Resnet, image: tuple[int, ...], classes: int) -> Model:
    """Builds the model of `dx.models.Resnet`."""
    refuse_invalid(settings)
    refuse_unfit(settings, image, classes)
    stem = Apply(Stem(settings.channels[0]), "embed")
    head = Apply(Head(classes), "head")
    parts: list[tuple[Apply, int]] = []
    for k, (channels, count) in enumerate(zip(settings.channels, settings.blocks, strict=True)):
        if k:
            parts.append((Apply(Block(channels, 2), "block"), 1))
        if count > (k > 0):
            parts.append((Apply(Block(channels, 1), "block"), count - (k > 0)))
    depth = tuple(count for _, count in parts)
    pixels = jax.ShapeDtypeStruct((1, *image), jnp.float32)

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, 1 + 2 * len(parts))
        params = {"embed": initial(stem.module, keys[0], pixels), "blocks": []}
        space = jax.eval_shape(stem, params, pixels)
        for k, (block, count) in enumerate(parts):
            weights = {"block": initial_stack(block.module, keys[1 + 2 * k], space, count)}
            space = jax.eval_shape(block, jax.tree.map(lambda a: a[0], weights), space)
            weights["head"] = initial_stack(head.module, keys[2 + 2 * k], space, count)
            params["blocks"].append(weights)
        return params

    def begin(params: PyTree, images: Shaped[AnyArray, "B ..."]) -> Array:
        check_input(images, image, "images")
        return stem(params, images)

    def steps(params: PyTree) -> tuple[Step, ...]:
        return tuple(
            stacked_step(block, head, weights)
            for (block, _), weights in zip(parts, params["blocks"], strict=True)
        )

    return Model(init, begin, steps, depth, block_names(sum(depth)))
