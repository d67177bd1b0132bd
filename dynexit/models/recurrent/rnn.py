"""Recurrent layers over the places of a sequence, with an exit at every place of every layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.data import Tokens
from dynexit.core.settings import refuse_invalid, refuse_unfit
from dynexit.core.shapes import Array, PyTree, Rows
from dynexit.core.types import Model
from dynexit.engine.steps import stacked_step
from dynexit.layers.heads import LogitsHead
from dynexit.layers.inputs import check_tokens, read_tokens
from dynexit.layers.linen import Apply, block_names, initial_stack, merged
from dynexit.models.recurrent.settings_cells import Rnn

CELLS = {"elman": nn.SimpleCell, "gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}


class Layer(nn.Module):
    """One cell over the places of `state["x"]`, `[b, L, D]`."""

    cell: str

    @nn.compact
    def __call__(self, state: Rows) -> Rows:
        x = state["x"]
        cell = CELLS[self.cell](x.shape[-1], dtype=x.dtype, name="cell")
        carry = cell.initialize_carry(jax.random.key(0), x[:, 0].shape)  # zeros of float32
        carry = jax.tree.map(lambda a: a.astype(x.dtype), carry)
        return {**state, "x": nn.RNN(cell)(x, initial_carry=carry)}


class Head(nn.Module):
    """Logits at every place, `[b, L, C]`; a dict of them and the mask where places are padded."""

    classes: int

    @nn.compact
    def __call__(self, state: Rows) -> Rows:
        logits = merged(self, LogitsHead(self.classes, norm=False))(state["x"])
        return {"logits": logits, "mask": state["mask"]} if "mask" in state else logits


def rnn(settings: Rnn, inputs: Tokens, classes: int) -> Model:
    """Builds the model of `dx.models.Rnn`; `inputs` are `dx.Tokens`."""
    refuse_invalid(settings)
    refuse_unfit(settings, inputs, classes)
    width, depth, vocabulary = settings.width, settings.depth, inputs.vocabulary
    layer, head = Apply(Layer(settings.cell), "block"), Apply(Head(classes), "head")

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, 3)
        state = {"x": jnp.zeros((1, 2, width))}
        blocks = {
            "block": initial_stack(layer.module, keys[1], state, depth),
            "head": initial_stack(head.module, keys[2], state, depth),
        }
        table = jax.random.normal(keys[0], (vocabulary, width), jnp.float32)
        return {"embed": table, "blocks": blocks}

    def embed(params: PyTree, inputs: PyTree) -> PyTree:
        tokens, real, _ = read_tokens(inputs, settings.padding)
        check_tokens(tokens, "inputs")
        mask = {} if real is None else {"mask": real}
        return {"x": params["embed"][tokens], **mask}

    steps = lambda params: stacked_step(layer, head, params["blocks"])
    return Model(init, embed, steps, depth, block_names(depth))
