"""Residual network as stages of different shapes, with an exit after every block.

Pre-activation blocks (He et al., 2016, arXiv 1603.05027) with group normalisation (Wu and He, 2018,
arXiv 1803.08494) in place of batch normalisation, whose statistics would couple the rows of a
batch.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.checks import positive_integer
from dynexit.core.types import Model
from dynexit.engine.steps import stacked_step
from dynexit.layers.parts import Apply, Norm, block_names, check_input, initial, initial_stack

GROUP = 8  # channels per group of the normalisation
HIDDEN = 32  # width of an exit head


class GroupNorm(nn.Module):
    """Group normalisation over groups of 8 channels, computed in float32, returned in the type that
    came in.
    """

    @nn.compact
    def __call__(self, x):
        # Not forcing makes flax cast scale and bias too, to the float32 that x already is: bfloat16
        # parameters are welcome.
        size = min(GROUP, x.shape[-1])
        norm = nn.GroupNorm(
            num_groups=None, group_size=size, dtype=jnp.float32, force_float32_reductions=False
        )
        return norm(x.astype(jnp.float32)).astype(x.dtype)


def convolution(x, channels: int, stride: int, name: str, kernel: int = 3):
    """A convolution without bias, padded so that stride 1 keeps the size."""
    return nn.Conv(
        channels,
        (kernel, kernel),
        strides=(stride, stride),
        use_bias=False,
        dtype=x.dtype,
        name=name,
    )(x)


class Stem(nn.Module):
    """The first convolution, stride 2: `[b, H, W, C]` to `[b, H/2, W/2, channels]`."""

    channels: int

    @nn.compact
    def __call__(self, images):
        return convolution(images, self.channels, 2, "conv")


class Block(nn.Module):
    """Norm, ReLU, convolution, twice; with stride 2 or more channels the shortcut is a 1 x 1
    convolution.
    """

    channels: int
    stride: int

    @nn.compact
    def __call__(self, x):
        h = nn.relu(GroupNorm(name="norm1")(x))
        changes = self.stride > 1 or x.shape[-1] != self.channels
        short = convolution(h, self.channels, self.stride, "shortcut", kernel=1) if changes else x
        h = convolution(h, self.channels, self.stride, "conv1")
        return short + convolution(nn.relu(GroupNorm(name="norm2")(h)), self.channels, 1, "conv2")


class Head(nn.Module):
    """Exit head: one hidden layer of 32 on the whole map, norm, ReLU, linear; `[b, h, w, c]` to
    logits `[b, C]`.

    Every inner exit that a row passes is paid for, and full depth pays for one alone. A matrix
    product on the flat map costs about 5% of a block; normalising and pooling the map first, as
    published heads do, took 20% of a block's time on two CPU cores.
    """

    classes: int

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(HIDDEN, dtype=x.dtype, name="hidden")(x.reshape(x.shape[0], -1))
        return nn.Dense(self.classes, dtype=x.dtype, name="logits")(nn.relu(Norm(name="norm")(h)))


def resnet(
    image: tuple[int, int, int], classes: int, *, stages: Sequence[tuple[int, int]]
) -> Model:
    """A residual network: a stem of stride 2, then stages of blocks, each stage after the first at
    half the resolution.

    Convolutional layers: 1 + 2 x blocks, and the linear one of the exit.

    Args:
      image: height, width and channels of the input.
      classes: C.
      stages: `(channels, blocks)` of each stage.

    Returns:
      A staged `Model`: the block that halves the resolution is an engine stage of its own, of depth
      1, for the state changes its shape there. Inputs `[B, height, width, channels]`, outputs
      logits `[E, B, C]` with E the number of blocks.

    Raises:
      ValueError, TypeError: no stages, or a number below 1.

    Example:
      >>> model = resnet((28, 28, 1), 10, stages=((8, 2), (16, 3)))
      >>> model.depth
      (2, 1, 2)
    """
    positive_integer(classes, "classes")
    if not stages:
        raise ValueError("`stages` must hold at least one (channels, blocks), got none")
    for k, (channels, count) in enumerate(stages):
        positive_integer(channels, f"stages[{k}] channels")
        positive_integer(count, f"stages[{k}] blocks")
        if channels % min(GROUP, channels):
            raise ValueError(
                f"`stages[{k}]` channels must be below {GROUP} or a multiple of it, got {channels}"
            )
    head = Apply(Head(classes), "head")
    stem = Stem(stages[0][0])
    parts: list[tuple[Apply, int]] = []
    for k, (channels, count) in enumerate(stages):
        if k:
            parts.append((Apply(Block(channels, 2), "block"), 1))
        if count > (k > 0):
            parts.append((Apply(Block(channels, 1), "block"), count - (k > 0)))
    depth = tuple(count for _, count in parts)

    def init(key):
        keys = jax.random.split(key, 1 + 2 * len(parts))
        params = {
            "embed": initial(stem, keys[0], jax.ShapeDtypeStruct((1, *image), jnp.float32)),
            "blocks": [],
        }
        space = jax.eval_shape(
            lambda p, x: stem.apply({"params": p}, x), params["embed"], jnp.zeros((1, *image))
        )
        for k, (block, count) in enumerate(parts):
            weights = {"block": initial_stack(block.module, keys[1 + 2 * k], space, count)}
            space = jax.eval_shape(block, jax.tree.map(lambda a: a[0], weights), space)
            weights["head"] = initial_stack(head.module, keys[2 + 2 * k], space, count)
            params["blocks"].append(weights)
        return params

    def embed(params, images):
        check_input(images, image, "images")
        return stem.apply({"params": params["embed"]}, images)

    def steps(params):
        return tuple(
            stacked_step(block, head, weights)
            for (block, _), weights in zip(parts, params["blocks"], strict=True)
        )

    return Model(init, embed, steps, depth, block_names(sum(depth)))
