"""Stochastic depth: a method trained with blocks dropped at random."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from dynexit.core.checks import described
from dynexit.core.shapes import AnyArray, Array, Bool, PyTree
from dynexit.core.types import Method, Model, Step
from dynexit.engine.run import run_all
from dynexit.transforms.stochastic_depth import dropped_blocks, survival

By = Literal["batch", "row"]


def stochastic_depth(method: Method, last: float = 0.5, by: By = "batch") -> Method:
    """Trains a method with residual blocks dropped at random.

    Training: s_l = s_{l-1} + (b_l / p_l) (block_l(s_{l-1}) - s_{l-1}) with b_l ~ Bernoulli(p_l) and
    p_l = 1 - (l / N)(1 - p_N). With `by="batch"` there is one draw b_l for all rows and a dropped
    block is not computed: with p_N = 1/2, (3N - 1) / 4 blocks are computed on average. With
    `by="row"` every block is computed.

    Inference: that of `method`.

    Args:
      method: with an objective (`fixed_depth`, `confidence_exits`, ...), which gets the outputs of
        all exits, also those of dropped blocks.
      last: p_N, above 0 and at most 1.
      by: "batch" or "row".

    Returns:
      `Method`, for models whose steps come from `stacked_step`. In a model of stages, a block that
      changes the shape is always kept. Metrics: those of `method`, and kept_blocks, the mean
      fraction of blocks kept.

    Raises:
      ValueError: a method without an objective, `last` or `by` out of range; from the loss, a model
        whose steps cannot be taken apart.

    Example:
      >>> import dynexit as dx
      >>> method = stochastic_depth(dx.methods.fixed_depth(), last=0.8)
      >>> model = dx.models.Mlp(width=8, depth=5).build((4,), 3)
      >>> params, progress = model.init(jax.random.key(0)), jnp.float32(0.0)
      >>> x, y = jnp.ones((2, 4)), jnp.array([0, 1])
      >>> losses, metrics = method.loss(model, params, x, y, jax.random.key(1), progress)
      >>> losses.shape, sorted(metrics)
      ((2,), ['accuracy_exit_first', 'accuracy_exit_last', 'kept_blocks'])

    Source: Huang et al. 2016, arXiv 1603.09382. Deviations: blocks are divided by p_l in training
      and not multiplied by it at inference (as in "drop path"), so the network is unchanged at
      inference; blocks are dropped after the residual sum, where the paper has one more ReLU.
    """
    inner = method.objective
    if inner is None:
        raise ValueError(
            "`method` must have an objective; a method with its own loss chooses the blocks it runs"
        )
    if by not in ("batch", "row"):
        raise ValueError(f"`by` must be 'batch' or 'row', got {by!r}")
    survival(1, last)  # refuses a wrong `last` here, not at the first update

    def loss(
        model: Model, params: PyTree, inputs: PyTree, labels: Array, key: Array, progress: Array
    ) -> tuple[Array, dict[str, Array]]:
        steps, depths = model.steps(params), model.depth
        staged = isinstance(depths, tuple)
        steps, depths = (steps, depths) if staged else ((steps,), (depths,))
        always = np.concatenate(
            changing(steps, depths, jax.eval_shape(model.embed, params, inputs))
        )
        chance = jnp.where(always, 1.0, survival(sum(depths), last))
        kept = jax.random.bernoulli(
            key, chance if by == "batch" else jnp.tile(chance[:, None], len(labels))
        )
        parts, begun = [], 0
        for step, depth in zip(steps, depths, strict=True):
            here = slice(begun, begun + depth)
            parts.append(dropped_blocks(step, kept[here], 1 / chance[here]))
            begun += depth
        outputs = run_all(
            tuple(parts) if staged else parts[0], model.embed(params, inputs), model.depth
        )
        losses, metrics = inner(
            jax.tree.map(lambda a: a.astype(jnp.float32), outputs), labels, progress
        )
        return losses, {**metrics, "kept_blocks": kept.mean(dtype=jnp.float32)}

    return method._replace(objective=None, loss=loss)


def changing(
    steps: Sequence[Step], depths: Sequence[int], state: PyTree
) -> list[Bool[AnyArray, "N"]]:
    """For each stage bool `[N]`: blocks that change the shape of the state, always kept."""
    found = []
    for step, depth in zip(steps, depths, strict=True):
        new = jax.eval_shape(
            lambda s, step=step: step.apply(step.select(jnp.int32(0)), jnp.int32(0), s)[0], state
        )
        alike = described(new) == described(state)
        found.append(np.full(depth, not alike))
        state = new
    return found
