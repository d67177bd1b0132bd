"""Gated recurrent layers whose time axis is solved in parallel, with an exit after every block."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.settings import refuse_invalid, refuse_unfit
from dynexit.core.shapes import AnyArray, Array, Float, PyTree, Rows, Shaped
from dynexit.core.types import Model
from dynexit.engine.steps import stacked_step
from dynexit.layers.dense import Dense
from dynexit.layers.heads import LogitsHead
from dynexit.layers.inputs import check_input
from dynexit.layers.linen import Apply, block_names, initial, initial_stack, merged
from dynexit.layers.mlp import MLP
from dynexit.layers.norms import LayerNorm
from dynexit.models.recurrent.settings_cells import ParaGru
from dynexit.solvers.newton_scan import newton_scan


def para_gru_cell(
    recurrent: Float[Array, "3 D"], h: Float[Array, "b D"], u: Float[Array, "b 3 D"]
) -> Float[Array, "b D"]:
    """One step of a GRU whose recurrent weights, and so its Jacobian, are diagonal.

    z = sig(a_z h + u_z); r = sig(a_r h + u_r); n = tanh(a_n h r + u_n); h' = (1 - z) h + z n

    Args:
      recurrent: a_z, a_r, a_n, `[3, D]`.
      h: `[b, D]`.
      u: B x + c of the input, one for each of z, r and n, `[b, 3, D]`.

    Returns:
      `[b, D]`.

    Example:
      >>> # with z = 1/2 and n = 0, half of h is kept
      >>> float(para_gru_cell(jnp.zeros((3, 1)), jnp.ones((1, 1)), jnp.zeros((1, 3, 1)))[0, 0])
      0.5

    Source: Danieli et al. 2025, ParaRNN, ParaGRU.
    """
    a = recurrent[:, None]
    z, r = jax.nn.sigmoid(a[0] * h + u[:, 0]), jax.nn.sigmoid(a[1] * h + u[:, 1])
    return (1 - z) * h + z * jnp.tanh(a[2] * h * r + u[:, 2])


class Recurrent(nn.Module):
    """States of the recurrence over x `[b, L, D]`, solved in float32, and its residual `[b]`."""

    corrections: int
    tolerance: float
    bound: float

    @nn.compact
    def __call__(self, x: Float[Array, "b L D"]) -> tuple[Float[Array, "b L D"], Float[Array, "b"]]:
        width = x.shape[-1]
        u = Dense((3, width), name="inputs")(x).astype(jnp.float32)
        draw = nn.initializers.normal(0.3)
        raw = self.param("recurrent", draw, (3, width), jnp.float32).astype(jnp.float32)
        weights = self.bound * jnp.tanh(raw / self.bound)
        begun = jnp.zeros((x.shape[0], width), jnp.float32)
        found = newton_scan(para_gru_cell, weights, u, begun, self.corrections, self.tolerance)
        return found.states.astype(x.dtype), found.residual.astype(x.dtype)


class Block(nn.Module):
    """Recurrence over time, then an MLP, each of a norm and added to its input.

    The state is `{"x": [b, L, D], "newton_residual": [b]}`, the largest residual so far.
    """

    corrections: int
    tolerance: float
    bound: float

    @nn.compact
    def __call__(self, state: Rows) -> Rows:
        x = state["x"]
        recurrent = Recurrent(self.corrections, self.tolerance, self.bound, name="gru")
        inner = merged(self, MLP(2 * x.shape[-1]))
        states, residual = recurrent(LayerNorm(name="norm1")(x))
        x = x + Dense(x.shape[-1], name="out")(states)
        x = x + inner(LayerNorm(name="norm2")(x))
        return {"x": x, "newton_residual": jnp.maximum(state["newton_residual"], residual)}


class Head(nn.Module):
    """Logits of the last place, and the largest residual so far."""

    classes: int

    @nn.compact
    def __call__(self, state: Rows) -> Rows:
        logits = merged(self, LogitsHead(self.classes))(state["x"][:, -1])
        return {"logits": logits, "newton_residual": state["newton_residual"]}


def para_gru(settings: ParaGru, inputs: tuple[int, ...], classes: int) -> Model:
    """Builds the model of `dx.models.ParaGru`."""
    refuse_invalid(settings)
    refuse_unfit(settings, inputs, classes)
    width, depth = settings.width, settings.depth
    places, channels = math.prod(inputs[:-1]), inputs[-1]
    embed, head = Apply(Dense(width), "embed"), Apply(Head(classes), "head")
    block = Apply(Block(settings.corrections, settings.tolerance, settings.bound), "block")

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, 3)
        state = {"x": jnp.zeros((1, places, width)), "newton_residual": jnp.zeros(1)}
        blocks = {
            "block": initial_stack(block.module, keys[1], state, depth),
            "head": initial_stack(head.module, keys[2], state, depth),
        }
        first = initial(embed.module, keys[0], jnp.zeros((1, places, channels)))
        return {"embed": first, "blocks": blocks}

    def begin(params: PyTree, x: Shaped[AnyArray, "B ..."]) -> PyTree:
        check_input(x, inputs, "sequences")
        projected = embed(params, x.reshape(x.shape[0], places, channels))
        return {"x": projected, "newton_residual": jnp.zeros(x.shape[0], x.dtype)}

    steps = lambda params: stacked_step(block, head, params["blocks"])
    return Model(init, begin, steps, depth, block_names(depth))
