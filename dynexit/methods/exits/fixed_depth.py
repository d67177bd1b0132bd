"""Fixed depth: the baseline whose rows all exit at the last exit."""

from typing import Any

import numpy as np

from dynexit import criteria
from dynexit.core.shapes import Array, PyTree
from dynexit.core.types import Candidates, Criterion, Method, Model
from dynexit.engine.run import run_full
from dynexit.methods.answers import accuracy, logits_of, predict
from dynexit.objectives.multi_exit import multi_exit_cross_entropy, widened


def fixed_depth(label_smoothing: float = 0.0) -> Method:
    """The loss of the last exit alone, L_b = CE_{E-1,b}, and every row at full depth.

    Args:
      label_smoothing: in 0..1.

    Returns:
      `Method`. Outputs are logits `[E, B, ..., C]` or a dict with "logits". An operating point is
      `{"depth": []}` in exits; the one candidate is E. Its `loss`, which training takes, reads the
      last exit alone and has the metric accuracy_exit_last; the objective is the same loss of the
      outputs of all exits, and has accuracy_exit_first too.

    Raises:
      ValueError: from the objective, `label_smoothing` outside 0..1.

    Example:
      >>> import jax.numpy as jnp
      >>> method = fixed_depth()
      >>> labels, progress = jnp.array([0, 1]), jnp.float32(0.0)
      >>> loss, metrics = method.objective(jnp.zeros((3, 2, 4)), labels, progress)
      >>> [round(x, 4) for x in loss.tolist()], int(method.candidates.full(3, {})["depth"])
      ([1.3863, 1.3863], 3)
    """

    def objective(
        outputs: PyTree, labels: Array, progress: Array
    ) -> tuple[Array, dict[str, Array]]:
        logits = logits_of(outputs)
        losses, metrics = of_last(logits[-1], labels)
        return losses, {"accuracy_exit_first": accuracy(logits[0], labels), **metrics}

    def of_last(logits: Array, labels: Array) -> tuple[Array, dict[str, Array]]:
        losses = multi_exit_cross_entropy(logits[None], labels, label_smoothing)[0]
        return losses, {"accuracy_exit_last": accuracy(logits, labels)}

    def loss(
        model: Model, params: PyTree, inputs: PyTree, labels: Array, key: Array, progress: Array
    ) -> tuple[Array, dict[str, Array]]:
        _, output = run_full(model.steps(params), model.embed(params, inputs), model.depth)
        return of_last(widened(logits_of(output)), labels)

    def criterion(operating_point: PyTree) -> Criterion:
        return criteria.at_depth(operating_point["depth"])

    def points(records: Any, fitted: PyTree, costs: Any) -> PyTree:
        return {"depth": np.full(1, len(costs), np.int32)}

    full = lambda exits, fitted: {"depth": np.array(exits, np.int32)}
    return Method(objective, criterion, Candidates(full, points), predict, loss)
