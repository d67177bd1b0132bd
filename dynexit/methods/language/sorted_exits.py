"""Sorted fine-tuning: every chosen depth of a language model is trained as a model of its own."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from dynexit.core.labels import share
from dynexit.core.shapes import Array, Bool, HostArray, PyTree
from dynexit.core.stages import one_depth
from dynexit.core.types import Candidates, Method, Model
from dynexit.methods.answers import row_means
from dynexit.methods.exits.fixed_depth import fixed_depth
from dynexit.methods.language.exit_losses import exit_losses


def sorted_exits(depths: tuple[int, ...] = ()) -> Method:
    """SoFT: the mean of the losses of nested sub-models, and an exit at one depth for all rows.

    Training: L_b = 1 / |N| sum_{n in N} CE_nb, where sub-model n is the first n blocks with the
    final norm and the output matrix that all share. One forward pass has all of them.

    Args:
      depths: N without the full depth, which always belongs to it; rising numbers of blocks. Empty
        for every block.

    Returns:
      `Method`, for models with a decoder and exits with "hidden" (`dx.models.CausalLM`). An
      operating point is `{"depth": []}` in exits; the candidates are N. Metrics: loss_exit_first
      and loss_exit_last, the shallowest of N and full depth. Accuracy counts places.

    Raises:
      ValueError: depths that do not rise from 1, or, from the loss, reach the model's depth.
      TypeError: from the loss, a model without a decoder.

    Example:
      >>> import dynexit as dx, jax
      >>> model = dx.models.CausalLM(width=16, depth=4, heads=2).build(dx.Tokens(50), 50)
      >>> params, tokens = model.init(jax.random.key(0)), jnp.ones((2, 8), jnp.int32)
      >>> loss, metrics = sorted_exits((2,)).loss(
      ...     model, params, tokens, tokens, jax.random.key(1), jnp.float32(0.5)
      ... )
      >>> loss.shape, sorted(metrics)
      ((2,), ['loss_exit_first', 'loss_exit_last'])

    Source: Kavehzadeh et al. 2023, Sorted LLaMA, arXiv 2309.08968; Valipour et al. 2023, SortedNet,
      arXiv 2309.00255, whose sampled sub-models have this loss as their mean.
    """
    if list(depths) != sorted(set(depths)) or (depths and depths[0] < 1):
        raise ValueError(f"`depths` must be rising numbers of at least 1, got {tuple(depths)}")

    def loss(
        model: Model, params: PyTree, inputs: PyTree, labels: Array, key: Array, progress: Array
    ) -> tuple[Array, dict[str, Array]]:
        on = _trained(one_depth(model), depths)
        losses = exit_losses(model, params, inputs, labels, jnp.asarray(on))
        metrics = {"loss_exit_first": losses[np.argmax(on)], "loss_exit_last": losses[-1]}
        return losses.sum(axis=0) / float(on.sum()), row_means(metrics, labels)

    inner = fixed_depth()

    def points(records: Any, fitted: PyTree, costs: Any) -> PyTree:
        return {"depth": np.flatnonzero(_trained(len(costs), depths)) + 1}

    candidates = Candidates(inner.candidates.full, points)
    return inner._replace(objective=None, candidates=candidates, loss=loss, score=share)


def _trained(exits: int, depths: tuple[int, ...]) -> Bool[HostArray, "E"]:
    """Which exits have a loss."""
    if depths and depths[-1] >= exits:
        raise ValueError(f"`depths` must lie below {exits}, the model's depth, got {depths}")
    chosen = depths or range(1, exits)
    return np.array([n + 1 in chosen or n == exits - 1 for n in range(exits)])
