"""Recurrent layers over the places of a string, one after another, with an exit after every layer
at every place.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.checks import positive_integer
from dynexit.core.types import Array, Model, PyTree
from dynexit.engine.steps import stacked_step
from dynexit.layers.parts import Apply, block_names, initial_stack

CELLS = {"elman": nn.SimpleCell, "gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}


class Layer(nn.Module):
    """One cell read along the places, `[b, L, D]` to `[b, L, D]`."""

    cell: str

    @nn.compact
    def __call__(self, x):
        return nn.RNN(CELLS[self.cell](x.shape[-1], dtype=x.dtype, name="cell"))(x)


class Head(nn.Module):
    """Logits at every place, `[b, L, D]` to `[b, L, C]`."""

    classes: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.classes, dtype=x.dtype, name="logits")(x)


def rnn(vocabulary: int, classes: int, *, width: int, depth: int = 1, cell: str = "lstm") -> Model:
    """Layers of a recurrent network that answers at every place and reads the string once, from its
    beginning.

    h_t = cell(h_{t-1}, x_t) with h_0 = 0 in each layer; x of the next layer is h; a head of its own
    reads every layer.

    Args:
      vocabulary: V, kinds of tokens.
      classes: C, at every place.
      width: D.
      depth: layers N.
      cell: "elman" (tanh), "gru" or "lstm".

    Returns:
      A homogeneous `Model`: inputs integers `[B, L]`, L any, outputs logits `[E, B, L, C]` with E =
      N. Depth is in layers: time is read through to its end in each.

    Raises:
      ValueError, TypeError: a number below 1, an unknown `cell`; from `embed`, inputs that are no
        integers `[B, L]`.

    Example:
      >>> import dynexit as dx
      >>> model = rnn(5, 3, width=8, depth=2, cell="elman")
      >>> params = model.init(jax.random.key(0))
      >>> dx.run_all(model.steps(params), model.embed(params, jnp.zeros((4, 7), jnp.int32)), model.depth).shape
      (2, 4, 7, 3)

    Source: Elman 1990; Hochreiter and Schmidhuber 1997; Cho et al. 2014 (reset gate behind the
      matrix, as in cuDNN).
    """
    for name, value in dict(
        vocabulary=vocabulary, classes=classes, width=width, depth=depth
    ).items():
        positive_integer(value, name)
    if cell not in CELLS:
        raise ValueError(f"`cell` must be one of {', '.join(map(repr, CELLS))}, got {cell!r}")
    layer, head = Apply(Layer(cell), "block"), Apply(Head(classes), "head")

    def init(key: Array) -> PyTree:
        keys = jax.random.split(key, 3)
        x = jnp.zeros((1, 2, width))
        blocks = {
            "block": initial_stack(layer.module, keys[1], x, depth),
            "head": initial_stack(head.module, keys[2], x, depth),
        }
        return {"embed": jax.random.normal(keys[0], (vocabulary, width)), "blocks": blocks}

    def embed(params: PyTree, tokens: Any) -> Array:
        if jnp.ndim(tokens) != 2 or not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
            raise ValueError(
                f"`inputs` must be integers [B, L], got {jnp.result_type(tokens)}{list(jnp.shape(tokens))}"
            )
        return params["embed"][tokens]

    return Model(
        init,
        embed,
        lambda params: stacked_step(layer, head, params["blocks"]),
        depth,
        block_names(depth),
    )
