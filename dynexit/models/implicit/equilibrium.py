"""A small convolutional cell whose fixed point is the answer (deep equilibrium): as deep as its
iteration takes to settle.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.checks import positive_integer
from dynexit.core.types import Model
from dynexit.layers.parts import Apply, Norm, check_input, initial
from dynexit.models.recurrent.deep_thinking import Convolution
from dynexit.solvers.anderson import Mixing
from dynexit.solvers.fixed_point import begin_fixed_point, fixed_point_step


class Embed(nn.Module):
    """Patches of images `[b, H, W, C]` as what every iteration is told, `[b, H / patch, W / patch,
    D]`.
    """

    patch: int
    width: int

    @nn.compact
    def __call__(self, images):
        b, h, w, c = images.shape
        p = self.patch
        patches = (
            images.reshape(b, h // p, p, w // p, p, c)
            .transpose(0, 1, 3, 2, 4, 5)
            .reshape(b, h // p, w // p, -1)
        )
        return nn.Dense(self.width, dtype=images.dtype, name="patches")(patches)


class Cell(nn.Module):
    """`{"input": x, "z": z}`, both `[b, h, w, D]`, to norm(x + s conv(relu(conv(z)))), s `[D]` from
    0.3: a contraction at first.
    """

    @nn.compact
    def __call__(self, state):
        width = state["z"].shape[-1]
        inner = nn.relu(Convolution(width, name="in")(state["z"]))
        scale = self.param("scale", nn.initializers.constant(0.3), (width,)).astype(inner.dtype)
        moved = Convolution(width, name="out")(inner) * scale[None, None, None]
        return Norm(name="norm")(state["input"] + moved)


class Head(nn.Module):
    """Mean over places, norm, linear: `[b, h, w, D]` to logits `[b, C]`."""

    classes: int

    @nn.compact
    def __call__(self, z):
        return nn.Dense(self.classes, dtype=z.dtype, name="logits")(
            Norm(name="norm")(z.mean(axis=(1, 2)))
        )


@dataclasses.dataclass(frozen=True)
class _Map:
    cell: Apply

    def __call__(self, params, x, z):
        return self.cell(params, {"input": x, "z": z})


def equilibrium(
    image: tuple[int, int, int],
    classes: int,
    *,
    patch: int,
    width: int,
    steps: int,
    mixing: Mixing | None = None,
) -> Model:
    """A deep equilibrium network: z = norm(x + s conv(relu(conv(z)))), iterated from 0 and read at
    every iteration.

    Args:
      image: height, width and channels of the input.
      classes: C.
      patch: side of a patch in pixels.
      width: D, channels of the state.
      steps: N, the most iterations.
      mixing: how the next iterate is made: `dx.solvers.damped(...)`, `dx.solvers.anderson(...)`,
        None for the plain iteration.

    Returns:
      A weight-tied `Model`: inputs `[B, height, width, channels]` floating point, outputs
      `{"logits": [E, B, C], "residual": [E, B]}`; the state is that of
      `dx.solvers.fixed_point_step`.

    Raises:
      ValueError, TypeError: a number below 1, patches that leave pixels over.

    Example:
      >>> model = equilibrium((8, 8, 1), 10, patch=2, width=8, steps=30)
      >>> params = model.init(jax.random.key(0))
      >>> model.embed(params, jnp.zeros((3, 8, 8, 1)))["z"].shape
      (3, 4, 4, 8)

    Source: Bai et al. 2019 and 2020 (MDEQ) for the idea. The cell is ours and smaller than theirs:
      one scale, layer norm over
    channels, and no residual connection round the convolutions but a scale s, so that small weights
    contract.
    """
    for name, value in dict(classes=classes, patch=patch, width=width, steps=steps).items():
        positive_integer(value, name)
    if image[0] % patch or image[1] % patch:
        raise ValueError(
            f"`patch` must divide the image of {image[0]} x {image[1]} pixels, got {patch}"
        )
    embed, cell, head = Embed(patch, width), Apply(Cell(), "block"), Apply(Head(classes), "head")
    places = (1, image[0] // patch, image[1] // patch, width)

    def init(key):
        keys = jax.random.split(key, 3)
        z = jnp.zeros(places)
        return {
            "embed": initial(embed, keys[0], jnp.zeros((1, *image))),
            "block": initial(cell.module, keys[1], {"input": z, "z": z}),
            "head": initial(head.module, keys[2], z),
        }

    def begin(params, images):
        check_input(images, image, "images")
        x: Any = embed.apply({"params": params["embed"]}, images)
        return begin_fixed_point(x, jnp.zeros_like(x), mixing)

    names = tuple(f"step{i:03d}" for i in range(steps))
    return Model(
        init, begin, lambda params: fixed_point_step(_Map(cell), head, params, mixing), steps, names
    )
