"""A gated recurrent unit that reads its input again at every step and says when it is done
(PonderNet's parity network).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.core.checks import positive_integer
from dynexit.core.types import Model
from dynexit.engine.steps import tied_step
from dynexit.layers.halting import READS, halting_logit
from dynexit.layers.parts import Apply, check_input, initial


class Cell(nn.Module):
    """`{"x": [b, n], "h": [b, D]}` to the same with h after one cell update, and "previous", the h
    before it, where it is kept.
    """

    width: int

    @nn.compact
    def __call__(self, state):
        h, _ = nn.GRUCell(self.width, dtype=state["x"].dtype, name="cell")(state["h"], state["x"])
        kept = {"previous": state["h"]} if "previous" in state else {}
        return {"x": state["x"], "h": h, **kept}


class Head(nn.Module):
    """Answer and halting logit from h: `{"logits": [b, C], "halt_logit": [b]}`."""

    classes: int
    reads: str = "state"
    layers: int = 0
    detach: bool = False
    bias: float = 0.0

    @nn.compact
    def __call__(self, state):
        h = state["h"]
        logits = nn.Dense(self.classes, dtype=h.dtype, name="logits")(h)
        previous = state.get("previous", h)
        halt = halting_logit(
            h, previous, reads=self.reads, layers=self.layers, detach=self.detach, bias=self.bias
        )
        return {"logits": logits, "halt_logit": halt}


def gru_ponder(
    inputs: int,
    classes: int,
    *,
    width: int,
    steps: int,
    halt_reads: str = "state",
    halt_layers: int = 0,
    halt_detach: bool = False,
    halt_bias: float = 0.0,
) -> Model:
    """A weight-tied GRU for PonderNet (Banino et al., 2021, arXiv 2107.05407, parity task).

    Every step, the first one too, updates the cell before the answer is read. (Public code for the
    task reads step 1 from the zero state, where it can never be right.) `dx.transforms.averaged`
    makes an ACT model of it.

    Args:
      inputs: length n of the input vector.
      classes: C.
      width: size D of the hidden state.
      steps: N, the most steps.
      halt_reads: what halting is decided from: h_n ("state"), h_n beside h_{n-1} ("concat",
        PALBERT) or their difference ("diff"); h_0 = 0.
      halt_layers: tanh layers before the halting logit; 3 in PALBERT.
      halt_detach: whether halting sends no gradient into the cell.
      halt_bias: where the halting logit begins; 0 is a probability of 1/2.

    Returns:
      A weight-tied `Model`: inputs `[B, n]`, outputs `{"logits": [E, B, C], "halt_logit": [E, B]}`.

    Raises:
      ValueError, TypeError: a number below 1 (`halt_layers`: below 0), an unknown `halt_reads`.

    Example:
      >>> model = gru_ponder(8, 2, width=16, steps=10)
      >>> sorted(model.init(jax.random.key(0)))
      ['block', 'head']
    """
    for name, value in dict(inputs=inputs, classes=classes, width=width, steps=steps).items():
        positive_integer(value, name)
    if halt_layers < 0:
        raise ValueError(f"`halt_layers` must be at least 0, got {halt_layers}")
    if halt_reads not in READS:
        raise ValueError(
            f"`halt_reads` must be one of {', '.join(map(repr, READS))}, got {halt_reads!r}"
        )
    cell = Apply(Cell(width), "block")
    head = Apply(Head(classes, halt_reads, halt_layers, halt_detach, halt_bias), "head")

    def first(x):
        h = jnp.zeros((x.shape[0], width), x.dtype)
        return {"x": x, "h": h} if halt_reads == "state" else {"x": x, "h": h, "previous": h}

    def init(key):
        keys = jax.random.split(key)
        example = first(jnp.zeros((1, inputs)))
        return {
            "block": initial(cell.module, keys[0], example),
            "head": initial(head.module, keys[1], example),
        }

    def embed(params, x):
        check_input(x, (inputs,), "vectors")
        return first(x)

    names = tuple(f"step{i:02d}" for i in range(steps))
    return Model(init, embed, lambda params: tied_step(cell, head, params), steps, names)
