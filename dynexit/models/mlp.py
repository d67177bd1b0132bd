"""Residual MLP with an exit after every block."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.settings import refuse_invalid, refuse_unfit
from dynexit.core.shapes import AnyArray, Array, Float, PyTree, Shaped
from dynexit.core.types import Model
from dynexit.engine.steps import stacked_step
from dynexit.layers.dense import Dense
from dynexit.layers.heads import LogitsHead
from dynexit.layers.inputs import check_input
from dynexit.layers.linen import Apply, block_names, initial, initial_stack, merged
from dynexit.layers.mlp import MLP
from dynexit.layers.norms import LayerNorm
from dynexit.models.settings import Mlp


class Embed(nn.Module):
    """Inputs `[b, ...]`, flattened, to `[b, D]`."""

    width: int

    @nn.compact
    def __call__(self, x: Float[AnyArray, "b ..."]) -> Float[Array, "b D"]:
        return Dense(self.width, name="inputs")(x.reshape(x.shape[0], -1))


class Block(nn.Module):
    """x + down(gelu(up(norm(x)))) on `[b, D]`, with a hidden width of 2 D."""

    @nn.compact
    def __call__(self, x: Float[Array, "b D"]) -> Float[Array, "b D"]:
        inner = merged(self, MLP(2 * x.shape[-1]))
        return x + inner(LayerNorm(name="norm")(x))


def mlp(settings: Mlp, inputs: tuple[int, ...], classes: int) -> Model:
    """Builds the model of `dx.models.Mlp`."""
    refuse_invalid(settings)
    refuse_unfit(settings, inputs, classes)
    width, depth = settings.width, settings.depth
    embed = Apply(Embed(width), "embed")
    block, head = Apply(Block(), "block"), Apply(LogitsHead(classes), "head")

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, 3)
        rows = jax.ShapeDtypeStruct((1, width), jnp.float32)
        blocks = {
            "block": initial_stack(block.module, keys[1], rows, depth),
            "head": initial_stack(head.module, keys[2], rows, depth),
        }
        example = jax.ShapeDtypeStruct((1, *inputs), jnp.float32)
        return {"embed": initial(embed.module, keys[0], example), "blocks": blocks}

    def begin(params: PyTree, x: Shaped[AnyArray, "B ..."]) -> Array:
        check_input(x, inputs, "arrays")
        return embed(params, x)

    steps = lambda params: stacked_step(block, head, params["blocks"])
    return Model(init, begin, steps, depth, block_names(depth))
