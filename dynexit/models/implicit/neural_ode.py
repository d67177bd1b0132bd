"""A network of continuous depth: features moved by a small vector field, in as many solver steps as
a row needs.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.checks import positive_integer
from dynexit.core.types import Array, Model, PyTree
from dynexit.layers.parts import check_input, initial
from dynexit.models.mlp import Embed, Head
from dynexit.solvers.ode import Solver, begin_ode, ode_step


class Field(nn.Module):
    """dy/dt `[D]` of features y `[D]` at time t: smooth, and bounded by the weights of its last
    layer.
    """

    hidden: int

    @nn.compact
    def __call__(self, t, y):
        inner = nn.tanh(nn.Dense(self.hidden, name="in")(jnp.concatenate([y, t[None]])))
        return nn.Dense(y.shape[0], name="out")(inner)


@dataclasses.dataclass(frozen=True)
class _Field:
    module: Field

    def __call__(self, params: PyTree, t: Array, y: Array, x: PyTree) -> Array:
        moved: Any = self.module.apply({"params": params["block"]}, t, y)
        return moved


@dataclasses.dataclass(frozen=True)
class _Head:
    module: Head

    def __call__(self, params: PyTree, y: Array) -> Array:
        logits: Any = self.module.apply({"params": params["head"]}, y)
        return logits


def neural_ode(
    inputs: tuple[int, ...],
    classes: int,
    *,
    width: int,
    hidden: int,
    steps: int,
    solver: Solver | None = None,
    extra: int = 0,
) -> Model:
    """y(0) = W x, dy/dt = W2 tanh(W1 [y, t]), read after every step of the solver.

    Args:
      inputs: shape of one input, flattened on entry.
      classes: C.
      width: D.
      hidden: of the vector field.
      steps: N, the most solver steps, rejected ones included.
      solver: tolerances, scheme and end; None for Tsit5 with rtol 1e-3, atol 1e-6 up to t = 1.
      extra: zeros beside the features, so that trajectories may cross (ANODE).

    Returns:
      A weight-tied `Model`: inputs `[B, *inputs]` floating point, computed in float32, outputs
      `{"logits": [E, B, C], "gate": [E, B]}`, the gate being the fraction of the way.
      `criteria.gate_above(0.999)` takes each row to the end and no further.

    Raises:
      ValueError, TypeError: a number below 1, `extra` negative.
      ImportError: diffrax is not installed; when it is run.

    Example:
      >>> model = neural_ode((4,), 3, width=8, hidden=16, steps=12)
      >>> model.embed(model.init(jax.random.key(0)), jnp.zeros((2, 4)))["y"].shape
      (2, 8)

    Source: Chen et al. 2018; Dupont et al. 2019 for `extra`. Solved by diffrax, one step a block
      (`dx.solvers.ode_step`); no adjoint
    equation is integrated, gradients are those of the steps taken.
    """
    for name, value in dict(classes=classes, width=width, hidden=hidden, steps=steps).items():
        positive_integer(value, name)
    if extra < 0:
        raise ValueError(f"`extra` must be at least 0, got {extra}")
    solver = Solver() if solver is None else solver
    embed, field, head = Embed(width), _Field(Field(hidden)), _Head(Head(classes))

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, 3)
        y = jnp.zeros(width + extra)
        return {
            "embed": initial(embed, keys[0], jnp.zeros((1, *inputs))),
            "block": field.module.init(keys[1], jnp.float32(0.0), y)["params"],
            "head": initial(head.module, keys[2], y[None]),
        }

    def begin(params: PyTree, x: Array) -> PyTree:
        check_input(x, inputs, "inputs")
        y: Any = embed.apply({"params": params["embed"]}, x.astype(jnp.float32))
        return begin_ode(field, params, (), jnp.pad(y, ((0, 0), (0, extra))), solver)

    names = tuple(f"step{i:03d}" for i in range(steps))
    return Model(init, begin, lambda params: ode_step(field, head, params, solver), steps, names)
