"""A network of continuous depth: a small vector field, in as many solver steps as a row needs."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.settings import refuse_invalid, refuse_unfit
from dynexit.core.shapes import AnyArray, Array, Float, PyTree, Shaped
from dynexit.core.types import Model
from dynexit.layers.dense import Dense
from dynexit.layers.heads import LogitsHead
from dynexit.layers.inputs import check_input
from dynexit.layers.linen import Apply, initial, step_names
from dynexit.layers.norms import wide
from dynexit.models.implicit.settings import NeuralOde
from dynexit.models.mlp import Embed
from dynexit.solvers.ode import Solver, begin_ode, ode_step


class Field(nn.Module):
    """dy/dt `[D]` of features y `[D]` at time t; bounded by the weights of the last layer."""

    hidden: int

    @nn.compact
    def __call__(self, t: Float[Array, ""], y: Float[Array, "D"]) -> Float[Array, "D"]:
        inner = nn.tanh(Dense(self.hidden, name="in")(jnp.concatenate([y, t[None]])))
        return Dense(y.shape[0], name="out")(inner)


@dataclasses.dataclass(frozen=True)
class Slope:
    """The field as `dx.solvers.ode_step` calls it."""

    field: Apply

    def __call__(
        self, params: PyTree, t: Float[Array, ""], y: Float[Array, "D"], x: PyTree
    ) -> Float[Array, "D"]:
        return self.field(params, t, y)


def neural_ode(
    settings: NeuralOde, inputs: tuple[int, ...], classes: int, solver: Solver | None
) -> Model:
    """Builds the model of `dx.models.NeuralOde`."""
    refuse_invalid(settings)
    refuse_unfit(settings, inputs, classes)
    s, width, tolerance = settings, settings.width, settings.tolerance
    solver = Solver(rtol=tolerance, atol=tolerance / 1000) if solver is None else solver
    embed, field = Apply(Embed(width), "embed"), Apply(Field(s.hidden), "block")
    slope, head = Slope(field), Apply(LogitsHead(classes), "head")

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, 3)
        y = jnp.zeros(width + s.extra)
        return {
            "embed": initial(embed.module, keys[0], jnp.zeros((1, *inputs))),
            "block": initial(field.module, keys[1], jnp.float32(0.0), y),
            "head": initial(head.module, keys[2], y[None]),
        }

    def begin(params: PyTree, x: Shaped[AnyArray, "B ..."]) -> PyTree:
        check_input(x, inputs, "arrays")
        y = jnp.pad(embed(params, wide(jnp.asarray(x))), ((0, 0), (0, s.extra)))
        return begin_ode(slope, params, (), y, solver)

    steps = lambda params: ode_step(slope, head, params, solver)
    return Model(init, begin, steps, s.steps, step_names(s.steps))
