"""Certainty of an answer, and models that answer what they were most certain of so far."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dynexit.core.checks import one_depth, shapes
from dynexit.core.types import Array, Model, PyTree, Step
from dynexit.criteria import scores
from dynexit.criteria.reading import beside, read_logits


def certainty(output: PyTree) -> Array:
    """1 - H(p) / ln C of one exit's output, the mean over a row's places, float32 `[b]` in 0..1.

    Args:
      output: logits `[b, ..., C]`, or a dict with "logits".

    Raises:
      ValueError: fewer than 2 classes.

    Example:
      >>> # one place knows nothing, the other all
      >>> certainty(jnp.array([[[0.0, 0.0], [100.0, 0.0]]])).tolist()
      [0.5]

    Source: Darlow et al. 2025, arXiv 2505.05522, and for places its released code.
    """
    uncertain = scores.normalised_entropy(read_logits(output, None))
    return 1.0 - uncertain.mean(axis=tuple(range(1, uncertain.ndim)))


def best_so_far(model: Model) -> Model:
    """A model that answers at each exit what it said at the exit, so far, where it was most
    certain; the first of equals.

    logits_n = current_m with m = argmax_{i<=n} c(current_i). A row that leaves where its certainty
    first passes a threshold answers as it would have anyway; one that never passes it gives its
    best answer in the place of its last. A NaN is never the best, but where there was nothing else.

    Args:
      model: one step (no stages) that gives logits `[b, ..., C]`, or a dict with "logits" alone
        read.

    Returns:
      `Model` with the same parameters. Outputs `{"logits": [E, B, ..., C], "current": [E, B, ...,
      C]}`, the second as the model gives them, which is what a loss wants. State: "inner", the
      model's own; "logits" and "certainty", the best so far.

    Raises:
      TypeError: a model of several stages.
      ValueError: while tracing, outputs without logits.

    Example:
      >>> import dynexit as dx
      >>> says = lambda p, n: {"logits": p[n]}
      >>> embed = lambda p, x: jnp.zeros(len(x), jnp.int32) - 1
      >>> steps = lambda p: dx.tied_step(lambda p, n: n + 1, says, p)
      >>> model = best_so_far(dx.Model(lambda key: None, embed, steps, 3, ("a", "b", "c")))
      >>> said = jnp.array([[1.0, 0.0], [0.0, 5.0], [2.0, 0.0]])
      >>> outputs = dx.run_all(model.steps(said), model.embed(said, jnp.zeros(1)), 3)
      >>> outputs["logits"][:, 0].tolist()
      [[1.0, 0.0], [0.0, 5.0], [0.0, 5.0]]

    Source: Darlow et al. 2025, arXiv 2505.05522, how its networks are read.
    """
    one_depth(model)

    def embed(params: PyTree, inputs: PyTree) -> PyTree:
        step, state, i = model.steps(params), model.embed(params, inputs), jnp.int32(0)
        _, output = jax.eval_shape(lambda s: step.apply(step.select(i), i, s), shapes(state))
        logits = read_logits(output, None)
        best = jnp.full(logits.shape[:1], -1.0, jnp.float32)  # below any certainty
        return {
            "inner": state,
            "logits": jnp.full(logits.shape, jnp.nan, logits.dtype),
            "certainty": best,
        }

    def steps(params: PyTree) -> Step:
        step = model.steps(params)
        return dataclasses.replace(step, apply=Partial(_keep, step.apply))

    return Model(model.init, embed, steps, model.depth, model.names)


def _keep(apply, weights, i, state):
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
