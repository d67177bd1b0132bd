"""Vision transformer with an exit after every block (Dosovitskiy et al., 2021, arXiv 2010.11929;
pre-norm, mean pooling).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.checks import positive_integer
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


def vit(
    image: tuple[int, int, int],
    classes: int,
    *,
    patch: int,
    width: int,
    depth: int,
    heads: int,
    stride: int | None = None,
) -> Model:
    """A vision transformer whose every block has an exit head of its own.

    Args:
      image: height, width and channels of the input.
      classes: C.
      patch: side of a patch in pixels.
      width: D, a multiple of `heads`.
      depth: blocks N.
      heads: attention heads.
      stride: pixels from one patch to the next; None for `patch`. A smaller stride makes patches
        overlap (T2T-ViT, Yuan et al., 2021): L = ((height - patch) / stride + 1) ((width - patch) /
        stride + 1) tokens.

    Returns:
      A homogeneous `Model`: inputs `[B, height, width, channels]` floating point, outputs logits
      `[E, B, C]` with E = N; the compute type is that of the inputs.

    Raises:
      ValueError, TypeError: a number below 1, patches that leave pixels over, `width` not a
        multiple of `heads`.

    Example:
      >>> model = vit((8, 8, 1), 10, patch=4, width=8, depth=2, heads=2)
      >>> params = model.init(jax.random.key(0))
      >>> model.embed(params, jnp.zeros((3, 8, 8, 1))).shape
      (3, 4, 8)
    """
    stride = patch if stride is None else stride
    for name, value in dict(
        classes=classes, patch=patch, width=width, depth=depth, heads=heads, stride=stride
    ).items():
        positive_integer(value, name)
    if stride == patch and (image[0] % patch or image[1] % patch):
        raise ValueError(
            f"`patch` must divide the image of {image[0]} x {image[1]} pixels, got {patch}"
        )
    if (
        min(image[:2]) < patch
        or stride > patch
        or (image[0] - patch) % stride
        or (image[1] - patch) % stride
    ):
        raise ValueError(
            f"`stride` must be 1..{patch} and reach the last of {image[0]} x {image[1]} pixels, got {stride}"
        )
    if width % heads:
        raise ValueError(f"`width` must be a multiple of the {heads} `heads`, got {width}")
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
