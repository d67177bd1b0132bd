"""A gated recurrent unit that reads its input at every step, with a halting logit."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.settings import refuse_invalid, refuse_unfit
from dynexit.core.shapes import AnyArray, Array, Float, PyTree, Rows, Shaped
from dynexit.core.types import Model
from dynexit.engine.steps import tied_step
from dynexit.layers.dense import Dense
from dynexit.layers.halting import HaltingHead
from dynexit.layers.inputs import check_input
from dynexit.layers.linen import Apply, initial, merged, step_names
from dynexit.models.recurrent.settings_cells import Gru
from dynexit.transforms.averaging import averaged


class Cell(nn.Module):
    """`{"x": [b, n], "h": [b, D]}` to the same with h after one update of the cell.

    Where the state has "previous", it becomes the h before the update.
    """

    width: int

    @nn.compact
    def __call__(self, state: Rows) -> Rows:
        h, _ = nn.GRUCell(self.width, dtype=state["x"].dtype, name="cell")(state["h"], state["x"])
        kept = {"previous": state["h"]} if "previous" in state else {}
        return {"x": state["x"], "h": h, **kept}


class Head(nn.Module):
    """Answer and halting logit of the state: `{"logits": [b, C], "halt_logit": [b]}`."""

    classes: int
    reads: Literal["state", "concat", "diff"]
    layers: int
    detach: bool
    bias: float

    @nn.compact
    def __call__(self, state: Rows) -> Rows:
        h = state["h"]
        logits = Dense(self.classes, name="logits")(h)
        halting = HaltingHead(self.reads, self.layers, self.detach, self.bias)
        halt_logit = merged(self, halting)(h, state.get("previous"))
        return {"logits": logits, "halt_logit": halt_logit}


def gru_ponder(settings: Gru, inputs: tuple[int, ...], classes: int) -> Model:
    """Builds the model of `dx.models.Gru`."""
    refuse_invalid(settings)
    refuse_unfit(settings, inputs, classes)
    s = settings
    cell = Apply(Cell(s.width), "block")
    reads = Head(classes, s.halt_reads, s.halt_layers, s.halt_detach, s.halt_bias)
    head = Apply(reads, "head")

    def first(x: Float[AnyArray, "B n"]) -> Rows:
        h = jnp.zeros((x.shape[0], s.width), x.dtype)
        return {"x": x, "h": h} | ({} if s.halt_reads == "state" else {"previous": h})

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key)
        example = first(jnp.zeros((1, *inputs)))
        return {
            "block": initial(cell.module, keys[0], example),
            "head": initial(head.module, keys[1], example),
        }

    def embed(params: PyTree, x: Shaped[AnyArray, "B ..."]) -> Rows:
        check_input(x, inputs, "vectors")
        return first(x)

    steps = lambda params: tied_step(cell, head, params)
    model = Model(init, embed, steps, s.steps, step_names(s.steps, 2))
    return model if s.halting == "none" else averaged(model, s.epsilon, s.halting)
