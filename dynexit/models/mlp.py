"""Residual MLP with an exit after every block: the smallest network of all."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.checks import positive_integer
from dynexit.core.types import Model
from dynexit.engine.steps import stacked_step
from dynexit.layers.parts import Apply, Norm, block_names, check_input, initial, initial_stack


class Embed(nn.Module):
    """Any input, flattened, to `[b, D]`."""

    width: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width, dtype=x.dtype, name="inputs")(x.reshape(x.shape[0], -1))


class Block(nn.Module):
    """Norm, widening by 2, GELU, back; added to its input `[b, D]`."""

    @nn.compact
    def __call__(self, x):
        h = nn.gelu(nn.Dense(2 * x.shape[-1], dtype=x.dtype, name="up")(Norm(name="norm")(x)))
        return x + nn.Dense(x.shape[-1], dtype=x.dtype, name="down")(h)


class Head(nn.Module):
    """Norm and linear: `[b, D]` to logits `[b, C]`."""

    classes: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.classes, dtype=x.dtype, name="logits")(Norm(name="norm")(x))


def mlp(inputs: tuple[int, ...], classes: int, *, width: int, depth: int) -> Model:
    """A residual MLP whose every block has an exit head of its own.

    Args:
      inputs: shape of one input, flattened on entry.
      classes: C.
      width: D.
      depth: blocks N.

    Returns:
      A homogeneous `Model`: inputs `[B, *inputs]`, outputs logits `[E, B, C]` with E = N.

    Raises:
      ValueError, TypeError: a number below 1.

    Example:
      >>> model = mlp((8, 8, 1), 10, width=16, depth=3)
      >>> model.names
      ('block00', 'block01', 'block02')
    """
    for name, value in dict(classes=classes, width=width, depth=depth).items():
        positive_integer(value, name)
    embed, block, head = Embed(width), Apply(Block(), "block"), Apply(Head(classes), "head")

    def init(key):
        keys = jax.random.split(key, 3)
        rows = jax.ShapeDtypeStruct((1, width), jnp.float32)
        blocks = {
            "block": initial_stack(block.module, keys[1], rows, depth),
            "head": initial_stack(head.module, keys[2], rows, depth),
        }
        return {
            "embed": initial(embed, keys[0], jax.ShapeDtypeStruct((1, *inputs), jnp.float32)),
            "blocks": blocks,
        }

    def flatten(params, x):
        check_input(x, inputs, "inputs")
        return embed.apply({"params": params["embed"]}, x)

    return Model(
        init,
        flatten,
        lambda params: stacked_step(block, head, params["blocks"]),
        depth,
        block_names(depth),
    )
