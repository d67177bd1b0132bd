"""Gated recurrent layers whose time axis is solved in parallel (ParaRNN), with an exit after every
block.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.checks import positive_integer
from dynexit.core.types import Array, Model, PyTree
from dynexit.engine.steps import stacked_step
from dynexit.layers.parts import Apply, Norm, block_names, check_input, initial, initial_stack
from dynexit.solvers.newton_scan import newton_scan


def para_gru_cell(recurrent: Array, h: Array, u: Array) -> Array:
    """A GRU whose recurrent weights are diagonal, so that its Jacobian is: one step of the
    recurrence.

    z = sig(a_z h + u_z); r = sig(a_r h + u_r); n = tanh(a_n h r + u_n); h' = (1 - z) h + z n

    Args:
      recurrent: a_z, a_r, a_n, `[3, D]`.
      h: `[b, D]`.
      u: the input's part, B_z x + c_z and so on, `[b, 3, D]`.

    Returns:
      `[b, D]`.

    Example:
      >>> # half of h is kept
      >>> float(para_gru_cell(jnp.zeros((3, 1)), jnp.ones((1, 1)), jnp.zeros((1, 3, 1)))[0, 0])
      0.5

    Source: Danieli et al. 2025, ParaRNN, ParaGRU.
    """
    a = recurrent[:, None]
    z, r = jax.nn.sigmoid(a[0] * h + u[:, 0]), jax.nn.sigmoid(a[1] * h + u[:, 1])
    return (1 - z) * h + z * jnp.tanh(a[2] * h * r + u[:, 2])


class Recurrent(nn.Module):
    """`[b, L, D]` to the states of the recurrence `[b, L, D]`, computed in float32, and its
    residual `[b]`.
    """

    most: int
    tolerance: float
    bound: float

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        u = nn.Dense(3 * width, dtype=x.dtype, name="inputs")(x).astype(jnp.float32)
        raw = self.param("recurrent", nn.initializers.normal(0.3), (3, width)).astype(jnp.float32)
        recurrent = self.bound * jnp.tanh(raw / self.bound)
        begun = jnp.zeros((x.shape[0], width), jnp.float32)
        found = newton_scan(
            para_gru_cell,
            recurrent,
            u.reshape(*x.shape[:2], 3, width),
            begun,
            self.most,
            self.tolerance,
        )
        return found.states.astype(x.dtype), found.residual.astype(x.dtype)


class Block(nn.Module):
    """Recurrence over time, then an MLP, each on a norm and added; state `{"x": [b, L, D],
    "newton_residual": [b]}`.
    """

    most: int
    tolerance: float
    bound: float

    @nn.compact
    def __call__(self, state):
        x = state["x"]
        dense = lambda features, name: nn.Dense(features, dtype=x.dtype, name=name)
        states, residual = Recurrent(self.most, self.tolerance, self.bound, name="gru")(
            Norm(name="norm1")(x)
        )
        x = x + dense(x.shape[-1], "out")(states)
        x = x + dense(x.shape[-1], "down")(
            nn.gelu(dense(2 * x.shape[-1], "up")(Norm(name="norm2")(x)))
        )
        return {"x": x, "newton_residual": jnp.maximum(state["newton_residual"], residual)}


class Head(nn.Module):
    """Norm and linear on the last place, and the worst residual so far."""

    classes: int

    @nn.compact
    def __call__(self, state):
        last = Norm(name="norm")(state["x"][:, -1])
        logits = nn.Dense(self.classes, dtype=last.dtype, name="logits")(last)
        return {"logits": logits, "newton_residual": state["newton_residual"]}


def para_gru(
    length: int,
    channels: int,
    classes: int,
    *,
    width: int,
    depth: int,
    most: int = 8,
    tolerance: float = 1e-5,
    bound: float = 2.0,
) -> Model:
    """A sequence classifier of ParaGRU blocks, each followed by an exit that reads the last place.

    Args:
      length: L.
      channels: of the input.
      classes: C.
      width: D.
      depth: blocks N.
      most, tolerance: of `dx.solvers.newton_scan`, a row at a time.
      bound: of the recurrent weights, which are bound tanh(w / bound): beyond about 3 Newton's
        method does not converge.

    Returns:
      A homogeneous `Model`: inputs `[B, L, channels]`, outputs `{"logits": [E, B, C],
      "newton_residual": [E, B]}`, where the
      residual is the largest of the blocks so far: above `tolerance`, the recurrence was not solved
        in `most` corrections.

    Raises:
      ValueError, TypeError: a number below 1; `tolerance` or `bound` not above 0.

    Example:
      >>> model = para_gru(16, 2, 5, width=8, depth=2)
      >>> model.embed(model.init(jax.random.key(0)), jnp.zeros((3, 16, 2)))["x"].shape
      (3, 16, 8)

    Source: Danieli et al. 2025, ParaRNN. Deviations: no heads in the input projections, small
      weights and a bound on the recurrent
    ones; a stop at the residual in place of 3 corrections; their language models have no exits.
    """
    for name, value in dict(
        length=length, channels=channels, classes=classes, width=width, depth=depth, most=most
    ).items():
        positive_integer(value, name)
    for name, value in dict(tolerance=tolerance, bound=bound).items():
        if not value > 0:
            raise ValueError(f"`{name}` must be above 0, got {value}")
    embed = nn.Dense(width)
    block, head = Apply(Block(most, tolerance, bound), "block"), Apply(Head(classes), "head")
    example = {"x": jnp.zeros((1, length, width)), "newton_residual": jnp.zeros(1)}

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, 3)
        blocks = {
            "block": initial_stack(block.module, keys[1], example, depth),
            "head": initial_stack(head.module, keys[2], example, depth),
        }
        return {
            "embed": initial(embed, keys[0], jnp.zeros((1, length, channels))),
            "blocks": blocks,
        }

    def begin(params: PyTree, x: Array) -> PyTree:
        check_input(x, (length, channels), "sequences")
        projected: Any = embed.clone(dtype=x.dtype).apply({"params": params["embed"]}, x)
        return {"x": projected, "newton_residual": jnp.zeros(x.shape[0], x.dtype)}

    return Model(
        init,
        begin,
        lambda params: stacked_step(block, head, params["blocks"]),
        depth,
        block_names(depth),
    )
