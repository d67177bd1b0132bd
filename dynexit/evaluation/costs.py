"""FLOPs of a row at each exit."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.checks import shapes
from dynexit.core.cost import flops_of
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
      params: its parameters, or their shapes.
      inputs: a batch as `embed` takes it, or its shapes, leaves `[B, ...]`; its size is divided
        out.
      criterion: decides which rows exit; what it does not read may belong to the deferred readout.
        None for one that reads all of every exit.
    """
    params, inputs = shapes(params), shapes(inputs)
    rows = jax.tree.leaves(inputs)[0].shape[0]
    embed = flops_of(model.embed, params, inputs) / rows
    begun = state = jax.eval_shape(model.embed, params, inputs)
    network = jax.eval_shape(model.steps, params)

    def parts(network: Any) -> tuple[Any, Any]:
        """The network, and what is read once per row or None; traced."""
        if criterion is None:
            return network, None
        repeated, _, read = partition(network, model.depth, begun, criterion)
        return repeated, read

    def readout(network: Any, state: PyTree) -> PyTree:
        read = parts(network)[1]
        return () if read is None else read(state)

    blocks, heads, depths = [], [], []
    late = flops_of(readout, network, state) / rows
    for k, stage in enumerate(stages_of(network, model.depth)):

        def run(network: Any, state: PyTree, k: int = k) -> tuple[PyTree, PyTree]:
            step = stages_of(parts(network)[0], model.depth)[k].step
            return step.apply(step.select(jnp.int32(0)), jnp.int32(0), state)

        whole = flops_of(run, network, state) / rows
        block = flops_of(lambda *args, run=run: run(*args)[0], network, state) / rows
        blocks += [block] * stage.steps
        heads += [whole - block] * stage.steps
        depths += [stage.blocks_before + stage.step.blocks * (n + 1) for n in range(stage.steps)]
        state = jax.eval_shape(run, network, state)[0]
    return RowCosts(embed, np.array(blocks), np.array(heads), np.array(depths), late)
