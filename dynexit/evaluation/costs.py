"""FLOPs of a row at each exit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.cost import cost_of
from dynexit.core.shapes import Float, Int, PyTree, Rows
from dynexit.core.stages import stages_of
from dynexit.core.types import Criterion, Model
from dynexit.engine.deferred import partition


class RowCosts(NamedTuple):
    """FLOPs per row (a multiply-add is 2), and depths.

    Attributes:
      embed: of the embedding.
      blocks: float64 `[E]`, of the blocks between the exit before and this one.
      heads: float64 `[E]`, of reading this exit.
      depths: int64 `[E]`, blocks executed by a row that exits here.
      late: of the deferred readout, once per row (`dx.engine.deferred_readout`).
    """

    embed: float
    blocks: Float[np.ndarray, "E"]
    heads: Float[np.ndarray, "E"]
    depths: Int[np.ndarray, "E"]
    late: float = 0.0

    @property
    def until(self) -> Float[np.ndarray, "E"]:
        """float64 `[E]`: of a row that exits at each exit; all heads up to it are read."""
        return self.embed + np.cumsum(self.blocks + self.heads) + self.late

    @property
    def alone(self) -> Float[np.ndarray, "E"]:
        """float64 `[E]`: of a network cut after each exit, whose last head is the only one."""
        return self.embed + np.cumsum(self.blocks) + self.heads + self.late

    @property
    def full(self) -> float:
        """Of a row at full depth without early exits: embedding, blocks, the last head."""
        return float(self.alone[-1])


def costs_of(
    model: Model, params: PyTree, inputs: Rows, criterion: Criterion | None = None
) -> RowCosts:
    """Counts FLOPs from the lowered programs; nothing is run.

    Args:
      model: the model.
      params: its parameters.
      inputs: a batch as `embed` takes it, leaves `[B, ...]`; its size is divided out.
      criterion: decides which rows exit; what it does not read may belong to the deferred readout.
        None for one that reads all of every exit.
    """
    rows = len(jax.tree.leaves(inputs)[0])
    embed = cost_of(model.embed, params, inputs).flops / rows
    state = jax.eval_shape(model.embed, params, inputs)
    network, late = model.steps(params), 0.0
    if criterion is not None:
        network, _, read = partition(network, model.depth, state, criterion)
        late = cost_of(read, state).flops / rows if read is not None else 0.0
    blocks, heads, depths = [], [], []
    for step, steps, _, before in stages_of(network, model.depth):
        run = lambda state, step=step: step.apply(step.select(jnp.int32(0)), jnp.int32(0), state)
        whole = cost_of(run, state).flops / rows
        block = cost_of(lambda state, run=run: run(state)[0], state).flops / rows
        blocks += [block] * steps
        heads += [whole - block] * steps
        depths += [before + step.blocks * (k + 1) for k in range(steps)]
        state = jax.eval_shape(run, state)[0]
    return RowCosts(embed, np.array(blocks), np.array(heads), np.array(depths), late)
