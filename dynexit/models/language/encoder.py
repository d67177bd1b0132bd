"""The encoder of `transformers`, BERT or ALBERT, with an exit after every block."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.data import Tokens
from dynexit.core.settings import refuse_invalid, refuse_unfit
from dynexit.core.shapes import AnyArray, Array, Float, Int, PyTree, Rows
from dynexit.core.types import Model
from dynexit.layers.dense import Dense
from dynexit.layers.inputs import check_tokens, read_tokens
from dynexit.layers.linen import Apply
from dynexit.layers.norms import LayerNorm
from dynexit.models.encoder import Block, Trunk, encoder
from dynexit.models.language.encoder_settings import BertEncoder


class Embed(nn.Module):
    """norm(words[token] + positions[place] + types[type]), and a projection where it is narrower.

    Attributes:
      vocabulary, positions, types: entries of the three tables.
      embedding: their channels.
      width: D.
      project: whether tokens are projected to D.
      epsilon: of the norm.
    """

    vocabulary: int
    positions: int
    types: int
    embedding: int
    width: int
    project: bool
    epsilon: float

    @nn.compact
    def __call__(
        self, tokens: Int[AnyArray, "b L"], types: Int[AnyArray, "b L"]
    ) -> Float[Array, "b L D"]:
        draw = nn.initializers.normal(0.02)
        table = lambda name, rows: self.param(name, draw, (rows, self.embedding), jnp.float32)
        words, places = table("words", self.vocabulary), table("positions", self.positions)
        x = words[tokens] + table("types", self.types)[types] + places[None, : tokens.shape[1]]
        x = LayerNorm(self.epsilon, name="norm")(x)
        return Dense(self.width, name="projection")(x) if self.project else x


def bert_encoder(
    settings: BertEncoder, inputs: Tokens, classes: int | None, weights: PyTree = None
) -> Model:
    """Builds the model of `dx.models.BertEncoder`.

    Args:
      settings: of the encoder.
      inputs: vocabulary and length.
      classes: C; None for no exit heads.
      weights: the trunk's parameters; None to draw them.
    """
    s = settings
    refuse_invalid(s)
    refuse_unfit(s, inputs, 2 if classes is None else classes)
    block = Block(s.heads, s.hidden, s.activation, s.epsilon, post_norm=True)
    sizes = s.vocabulary, s.positions, s.types, s.embedding or s.width, s.width
    embed = Embed(*sizes, project=s.kind == "albert", epsilon=s.epsilon)
    shared = tuple(int(i / (s.depth / s.groups)) for i in range(s.depth))
    phase = shared if s.kind == "albert" else tuple(range(s.depth))

    def begin(embed: Apply, params: PyTree, inputs: Rows) -> PyTree:
        tokens, real, others = read_tokens(inputs, s.padding, ("types",))
        check_tokens(tokens, "inputs")
        if tokens.shape[1] > s.positions:
            raise ValueError(
                f"`inputs` must have at most {s.positions} tokens, the trunk's positions, "
                f"got {tokens.shape[1]}"
            )
        types: Any = others.get("types", jnp.zeros_like(tokens))
        if jnp.shape(types) != jnp.shape(tokens):
            raise ValueError(
                f'`inputs["types"]` must have shape {list(jnp.shape(tokens))}, '
                f"got {list(jnp.shape(types))}"
            )
        h = embed(params, jnp.asarray(tokens), jnp.asarray(types))
        return h if real is None else {"hidden": h, "mask": real}

    two = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    trunk = Trunk(embed, block, None, phase, s.width)
    return encoder(trunk, (two, two), begin, classes, s.exits, weights)
