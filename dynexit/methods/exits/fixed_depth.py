"""Fixed depth: the baseline whose rows all exit at the last exit."""

from typing import Any

import numpy as np

from dynexit import criteria
from dynexit.core.shapes import Array, PyTree
from dynexit.core.types import Candidates, Criterion, Method
from dynexit.methods.answers import accuracy, logits_of, predict
from dynexit.objectives.multi_exit import multi_exit_cross_entropy


def fixed_depth(label_smoothing: float = 0.0) -> Method:
    """The loss of the last exit alone, L_b = CE_{E-1,b}, and every row at full depth.

    Args:
      label_smoothing: in 0..1.

    Returns:
      `Method`. Outputs are logits `[E, B, ..., C]` or a dict with "logits". An operating point is
      `{"depth": []}` in exits; the one candidate is E. Metrics: accuracy_exit_first,
      accuracy_exit_last.

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
        metrics = {
            "accuracy_exit_first": accuracy(logits[0], labels),
            "accuracy_exit_last": accuracy(logits[-1], labels),
        }
        return multi_exit_cross_entropy(logits[-1:], labels, label_smoothing)[0], metrics

    def criterion(operating_point: PyTree) -> Criterion:
        return criteria.at_depth(operating_point["depth"])

    def points(records: Any, fitted: PyTree, costs: Any) -> PyTree:
        return {"depth": np.full(1, len(costs), np.int32)}

    full = lambda exits, fitted: {"depth": np.array(exits, np.int32)}
    return Method(objective, criterion, Candidates(full, points), predict)
