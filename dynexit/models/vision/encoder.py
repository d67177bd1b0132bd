"""The vision transformer of `transformers`, ViT or DINOv2, with an exit after every block."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.settings import refuse_invalid, refuse_unfit
from dynexit.core.shapes import AnyArray, Array, Float, HostArray, PyTree, Rows
from dynexit.core.types import Model
from dynexit.layers.dense import Dense
from dynexit.layers.inputs import check_input, patches
from dynexit.layers.linen import Apply
from dynexit.layers.norms import LayerNorm
from dynexit.models.encoder import Block, Trunk, encoder
from dynexit.models.vision.encoder_settings import VitEncoder

BICUBIC = -0.75  # a of the cubic convolution, as in PyTorch


class Embed(nn.Module):
    """A class token, and the patches of images `[b, H, W, C]`, as tokens `[b, L, D]`.

    Attributes:
      patch: side of a patch in pixels.
      width: D.
      grid: rows and columns of patches that the positions are for.
    """

    patch: int
    width: int
    grid: tuple[int, int]

    @nn.compact
    def __call__(self, images: Float[AnyArray, "b H W C"]) -> Float[Array, "b L D"]:
        cut = patches(images, self.patch, self.patch)
        shape = cut.shape[1], cut.shape[2]
        tokens = Dense(self.width, name="patches")(cut.reshape(cut.shape[0], -1, cut.shape[-1]))
        count = 1 + self.grid[0] * self.grid[1]
        draw = nn.initializers.normal(0.5)  # tokens of prepared images have a deviation of 1
        first = self.param("cls", draw, (self.width,), jnp.float32)
        positions = self.param("positions", draw, (count, self.width), jnp.float32)
        if shape != self.grid:
            places = positions[1:].reshape(*self.grid, self.width)
            places = jnp.einsum("ih,hwd->iwd", resampling(self.grid[0], shape[0]), places)
            places = jnp.einsum("jw,iwd->ijd", resampling(self.grid[1], shape[1]), places)
            positions = jnp.concatenate([positions[:1], places.reshape(-1, self.width)])
        first = jnp.broadcast_to(first.astype(tokens.dtype), (cut.shape[0], 1, self.width))
        tokens = jnp.concatenate([first, tokens], axis=1)
        return tokens + positions.astype(tokens.dtype)[None]


def resampling(size: int, new: int) -> Float[HostArray, "new size"]:
    """Weights of bicubic interpolation along one axis, without antialiasing; edges are repeated.

    Args:
      size: samples that there are.
      new: samples wanted; sample i is at (i + 1/2) size / new - 1/2.

    Example:
      >>> [round(float(weight), 3) for weight in resampling(4, 2)[0]]
      [0.5, 0.594, -0.094, 0.0]
      >>> resampling(2, 2).tolist()
      [[1.0, 0.0], [0.0, 1.0]]

    Source: Keys 1981, with a = -0.75.
    """
    weights, a = np.zeros((new, size)), BICUBIC
    for i in range(new):
        at = (i + 0.5) * size / new - 0.5
        for k in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            x = abs(at - k)
            near = ((a + 2) * x - (a + 3)) * x * x + 1
            far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
            weights[i, min(max(k, 0), size - 1)] += near if x <= 1 else far if x < 2 else 0.0
    return weights.astype(np.float32)


def gated_width(hidden: int) -> int:
    """Inner width of DINOv2's gated MLP: two thirds, rounded up to a multiple of 8.

    Example:
      >>> gated_width(64)
      48
    """
    return (int(hidden * 2 / 3) + 7) // 8 * 8


def vit_encoder(
    settings: VitEncoder,
    image: tuple[int, ...],
    classes: int | None,
    weights: PyTree = None,
) -> Model:
    """Builds the model of `dx.models.VitEncoder`.

    Args:
      settings: of the encoder.
      image: height, width and channels.
      classes: C; None for no exit heads.
      weights: the trunk's parameters; None to draw them.
    """
    s = settings
    refuse_invalid(s)
    refuse_unfit(s, image, 2 if classes is None else classes)
    block = Block(
        heads=s.heads,
        hidden=gated_width(s.hidden) if s.gated else s.hidden,
        activation="silu" if s.gated else s.activation,
        epsilon=s.epsilon,
        qkv_bias=s.qkv_bias,
        layer_scale=s.kind == "dinov2",
        gated=s.gated,
    )
    embed = Embed(s.patch, s.width, (s.image[0] // s.patch, s.image[1] // s.patch))
    trunk = Trunk(embed, block, LayerNorm(s.epsilon), tuple(range(s.depth)), s.width)

    def begin(embed: Apply, params: PyTree, images: Rows) -> Array:
        check_input(images, image, "images")
        return embed(params, images)

    pixels = jax.ShapeDtypeStruct((1, *image), jnp.float32)
    return encoder(trunk, (pixels,), begin, classes, s.exits, weights)
