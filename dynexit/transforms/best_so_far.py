"""Certainty of an output, and models that return their most certain output so far."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dynexit.core.checks import shapes
from dynexit.core.shapes import Array, Float, PyTree, Rows
from dynexit.core.stages import one_depth
from dynexit.core.types import Model, Step, wrapped_training
from dynexit.criteria import scores
from dynexit.criteria.reading import beside, read_logits


def certainty(output: Rows) -> Float[Array, "B"]:
    """Certainty of the output of an exit, 1 - H(p) / ln C, averaged over the positions of a row.

    Args:
      output: logits `[b, ..., C]`, or a dict with "logits".

    Returns:
      float32 `[b]` in 0..1.

    Raises:
      ValueError: there are fewer than 2 classes.

    Example:
      >>> # p is uniform at one position and one-hot at the other
      >>> certainty(jnp.array([[[0.0, 0.0], [100.0, 0.0]]])).tolist()
      [0.5]

    Source: Darlow et al. 2025, arXiv 2505.05522; the mean over positions from its released code.
    """
    uncertain = scores.normalised_entropy(read_logits(output, None))
    return 1.0 - uncertain.mean(axis=tuple(range(1, uncertain.ndim)))


def best_so_far(model: Model) -> Model:
    """A model that returns at each exit its most certain output up to there.

    logits_n = current_m with m = argmax_{i<=n} c(current_i), the first of equal maxima, and c of
    `certainty`. The output of a row that exits when its certainty first exceeds a threshold does
    not change. A row that never exceeds it returns its most certain output instead of its last. A
    certainty of NaN is never the maximum; if all are NaN, the logits are NaN.

    Args:
      model: a model without stages whose outputs are logits `[b, ..., C]`, or a dict with "logits",
        of which the other entries are dropped.

    Returns:
      A `Model` with the same parameters and without a decoder. Its outputs are `{"logits": [E, B,
      ..., C], "current": [E, B, ..., C]}`; "current" is the model's own output, for the loss. Its
      state has "inner", the model's state, and the "logits" and "certainty" of the maximum.

    Raises:
      TypeError: the model has several stages.
      ValueError: while tracing, the outputs have no logits.

    Example:
      >>> import dynexit as dx
      >>> head = lambda p, n: {"logits": p[n]}
      >>> embed = lambda p, x: jnp.zeros(len(x), jnp.int32) - 1
      >>> steps = lambda p: dx.tied_step(lambda p, n: n + 1, head, p)
      >>> model = best_so_far(dx.Model(lambda key: None, embed, steps, 3, ("a", "b", "c")))
      >>> logits = jnp.array([[1.0, 0.0], [0.0, 5.0], [2.0, 0.0]])
      >>> outputs = dx.run_all(model.steps(logits), model.embed(logits, jnp.zeros(1)), 3)
      >>> outputs["logits"][:, 0].tolist()
      [[1.0, 0.0], [0.0, 5.0], [0.0, 5.0]]

    Source: Darlow et al. 2025, arXiv 2505.05522, the readout of its networks.
    """
    one_depth(model)

    def embed(params: PyTree, inputs: Rows) -> Rows:
        step, state, i = model.steps(params), model.embed(params, inputs), jnp.int32(0)
        read = lambda s: read_logits(step.apply(step.select(i), i, s)[1], None)
        logits = jax.eval_shape(read, shapes(state))
        best = jnp.full(logits.shape[:1], -1.0, jnp.float32)  # below any certainty
        return {
            "inner": state,
            "logits": jnp.full(logits.shape, jnp.nan, logits.dtype),
            "certainty": best,
        }

    def steps(params: PyTree) -> Step:
        step = model.steps(params)
        return dataclasses.replace(step, apply=Partial(_keep, step.apply))

    training = wrapped_training(model, best_so_far)
    return Model(model.init, embed, steps, model.depth, model.names, training=training)


def _keep(
    apply: Callable[..., Any], weights: PyTree, i: Array, state: PyTree
) -> tuple[PyTree, PyTree]:
    inner, output = apply(weights, i, state["inner"])
    current = read_logits(output, None)
    now = certainty(current)
    better = now > state["certainty"]
    logits = jnp.where(beside(better, current), current, state["logits"])
    state = {
        "inner": inner,
        "logits": logits,
        "certainty": jnp.where(better, now, state["certainty"]),
    }
    return state, {"logits": logits, "current": current}
