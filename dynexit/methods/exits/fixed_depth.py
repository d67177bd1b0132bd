"""The plain network, trained on its last exit and never left before: what depth by the row has to
be compared with.
"""

import jax.numpy as jnp

from dynexit import criteria
from dynexit.core.types import Array, Criterion, Method, PyTree
from dynexit.methods.answers import accuracy, logits_of, predict
from dynexit.objectives.multi_exit import multi_exit_cross_entropy


def fixed_depth(label_smoothing: float = 0.0) -> Method:
    """The loss of the last exit alone, L_b = CE_{E-1,b}, and all rows at full depth.

    Args:
      label_smoothing: in 0..1.

    Returns:
      `Method`. Outputs are logits `[E, B, ..., C]` or a dict with "logits"; a point is `{"depth":
      []}` in exits, and the one candidate is E. Metrics: accuracy_exit_first, accuracy_exit_last.

    Raises:
      ValueError: from the objective, `label_smoothing` outside 0..1.

    Example:
      >>> method = fixed_depth()
      >>> loss, metrics = method.objective(jnp.zeros((3, 2, 4)), jnp.array([0, 1]), jnp.float32(0.0))
      >>> [round(x, 4) for x in loss.tolist()], method.candidates(jnp.zeros((3, 2, 4)), None, None)["depth"].tolist()
      ([1.3863, 1.3863], [3])
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

    def candidates(outputs: PyTree, labels: Array, costs: Array) -> PyTree:
        return {"depth": jnp.full(1, len(logits_of(outputs)), jnp.int32)}

    return Method(objective, criterion, candidates, predict)
