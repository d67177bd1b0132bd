"""Deep equilibrium: a small convolutional cell whose fixed point is the answer."""

import dataclasses
from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.settings import refuse_invalid, refuse_unfit
from dynexit.core.shapes import AnyArray, Array, Float, PyTree, Shaped
from dynexit.core.types import Model
from dynexit.layers.convolution import Convolution
from dynexit.layers.dense import Dense
from dynexit.layers.heads import LogitsHead
from dynexit.layers.inputs import check_input, patches
from dynexit.layers.linen import Apply, initial, step_names
from dynexit.layers.norms import LayerNorm
from dynexit.models.implicit.settings import Equilibrium
from dynexit.solvers.anderson import Mixing
from dynexit.solvers.fixed_point import begin_fixed_point, fixed_point_step

State: TypeAlias = Float[Array, "b h w D"]


class Embed(nn.Module):
    """Patches of images `[b, H, W, C]`, projected to `[b, H / patch, W / patch, D]`."""

    patch: int
    width: int

    @nn.compact
    def __call__(self, images: Float[AnyArray, "b H W C"]) -> State:
        return Dense(self.width, name="patches")(patches(images, self.patch, self.patch))


class Cell(nn.Module):
    """`{"input": x, "z": z}`, both `[b, h, w, D]`, to norm(x + s conv(relu(conv(z)))).

    s `[D]` is 0.3 at first, so that the map contracts.
    """

    @nn.compact
    def __call__(self, state: dict[str, State]) -> State:
        width, he = state["z"].shape[-1], nn.initializers.he_normal()
        convolution = lambda name: Convolution(width, in_loop=True, kernel_init=he, name=name)
        inner = nn.relu(convolution("in")(state["z"]))
        scale = self.param("scale", nn.initializers.constant(0.3), (width,), jnp.float32)
        moved = convolution("out")(inner) * scale.astype(inner.dtype)[None, None, None]
        return LayerNorm(name="norm")(state["input"] + moved)


@dataclasses.dataclass(frozen=True)
class Map:
    """The map z -> f(x, z) whose fixed point is computed."""

    cell: Apply

    def __call__(self, params: PyTree, x: State, z: State) -> State:
        return self.cell(params, {"input": x, "z": z})


def equilibrium(
    settings: Equilibrium, image: tuple[int, ...], classes: int, mixing: Mixing | None
) -> Model:
    """Builds the model of `dx.models.Equilibrium`."""
    refuse_invalid(settings)
    refuse_unfit(settings, image, classes)
    patch, width, most = settings.patch, settings.width, settings.steps
    mixing = settings.mixing() if mixing is None else mixing
    embed, cell = Apply(Embed(patch, width), "embed"), Apply(Cell(), "block")
    head = Apply(LogitsHead(classes, pool="mean"), "head")

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, 3)
        z = jnp.zeros((1, image[0] // patch, image[1] // patch, width))
        return {
            "embed": initial(embed.module, keys[0], jnp.zeros((1, *image))),
            "block": initial(cell.module, keys[1], {"input": z, "z": z}),
            "head": initial(head.module, keys[2], z),
        }

    def begin(params: PyTree, images: Shaped[AnyArray, "B ..."]) -> PyTree:
        check_input(images, image, "images")
        x = embed(params, images)
        return begin_fixed_point(x, jnp.zeros_like(x), mixing)

    steps = lambda params: fixed_point_step(Map(cell), head, params, mixing)
    return Model(init, begin, steps, most, step_names(most))
