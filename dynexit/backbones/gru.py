"""A gated recurrent unit that reads its input again at every step and says when it is done (PonderNet's parity network)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynexit.backbones.parts import Apply, check_input, initial
from dynexit.core.checks import positive_integer
from dynexit.core.types import Model
from dynexit.exits import tied_step


class Cell(nn.Module):
    """`{"x": [b, n], "h": [b, D]}` to the same with h after one cell update."""

    width: int

    @nn.compact
    def __call__(self, state):
        h, _ = nn.GRUCell(self.width, dtype=state["x"].dtype, name="cell")(state["h"], state["x"])
        return {"x": state["x"], "h": h}


class Head(nn.Module):
    """Answer and halting logit from h: `{"logits": [b, C], "halt_logit": [b]}`."""

    classes: int

    @nn.compact
    def __call__(self, state):
        h = state["h"]
        logits = nn.Dense(self.classes, dtype=h.dtype, name="logits")(h)
        return {"logits": logits, "halt_logit": nn.Dense(1, dtype=h.dtype, name="halt")(h)[:, 0]}


def gru_ponder(inputs: int, classes: int, *, width: int, steps: int) -> Model:
    """A weight-tied GRU for PonderNet (Banino et al., 2021, arXiv 2107.05407, parity task).

    Every step, the first one too, updates the cell before the answer is read. (Public code for the task reads step 1 from the zero
    state, where it can never be right.)

    Args:
      inputs: length n of the input vector.
      classes: C.
      width: size D of the hidden state.
      steps: N, the most steps.

    Returns:
      A weight-tied `Model`: inputs `[B, n]`, outputs `{"logits": [E, B, C], "halt_logit": [E, B]}`.

    Raises:
      ValueError, TypeError: a number below 1.

    Example:
      >>> model = gru_ponder(8, 2, width=16, steps=10)
      >>> sorted(model.init(jax.random.key(0)))
      ['block', 'head']
    """
    for name, value in dict(inputs=inputs, classes=classes, width=width, steps=steps).items():
        positive_integer(value, name)
    cell, head = Apply(Cell(width), "block"), Apply(Head(classes), "head")

    def init(key):
        keys = jax.random.split(key)
        example = {"x": jnp.zeros((1, inputs)), "h": jnp.zeros((1, width))}
        return {"block": initial(cell.module, keys[0], example), "head": initial(head.module, keys[1], example)}

    def embed(params, x):
        check_input(x, (inputs,), "vectors")
        return {"x": x, "h": jnp.zeros((x.shape[0], width), x.dtype)}

    names = tuple(f"step{i:02d}" for i in range(steps))
    return Model(init, embed, lambda params: tied_step(cell, head, params), steps, names)
