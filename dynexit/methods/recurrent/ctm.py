"""The continuous thought machine: training at its best and its most certain tick."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from dynexit import criteria
from dynexit.calibration.candidates import levels
from dynexit.core.labels import exact
from dynexit.core.shapes import AnyArray, Array, Float, PyTree
from dynexit.core.types import Criterion, Method
from dynexit.methods.answers import predict, row_means
from dynexit.objectives.multi_exit import multi_exit_cross_entropy
from dynexit.transforms.best_so_far import certainty

CLOSE = (0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999, 0.99999)
THRESHOLDS = (*(j / 20 for j in range(19)), *CLOSE, 1.0)  # 1.0 is never passed: full depth


def ctm(thresholds: Sequence[float] | Float[AnyArray, "K"] = THRESHOLDS) -> Method:
    """The loss of the continuous thought machine, and an exit by certainty.

    The certainty is c_tb = 1 - H(p_tb) / ln C, averaged over the places of a row.

    Training: for each row b, L_b = (CE at argmin_t CE_tb + CE at argmax_t c_tb) / 2, the first of
    equals. Ticks have no cost.

    Inference: a row exits at the first tick with c > t. The mean over places decides, not each
    place, in the loss as at the exit, so a threshold orders ticks as the loss does. A row that
    never passes the threshold answers at its last tick, or at its most certain one if the model is
    wrapped in `dx.transforms.best_so_far`, as in the paper. The last ticks can be worse than
    earlier ones, because the loss may never select them.

    Args:
      thresholds: candidates for t, `[K]`, each in 0..1; 1, full depth, is added.

    Returns:
      `Method`, for any model with one exit per tick: logits `[E, B, ..., C]` (`dx.models.Ctm`), or
      a dict with "logits", and with "current" where these are not of this tick
      (`dx.transforms.best_so_far`). An operating point is `{"threshold": []}`. Metrics: loss_least
      and tick_least, where the loss is least (selected with the labels, so no accuracy is reported
      there); loss_certain, tick_certain and accuracy_certain, where the row is most certain;
      accuracy_exit_last, of the last tick itself. Ticks count from 1.

    Raises:
      ValueError: `thresholds` outside 0..1; from the objective, logits of one class.

    Example:
      >>> logits = jnp.array([[[2.0, 0.0]], [[0.0, 1.0]], [[0.0, 0.0]]])  # three ticks of one row
      >>> loss, metrics = ctm().objective(logits, jnp.array([1]), jnp.float32(0.0))
      >>> [float(metrics[name]) for name in ("tick_least", "tick_certain", "accuracy_certain")]
      [2.0, 1.0, 0.0]

    Source: Darlow et al. 2025, arXiv 2505.05522, and the losses of its released code. Deviation:
      the paper runs all ticks and reads the most certain one; here a row that passes a threshold is
      the most certain that it has been so far.
    """
    candidates = levels(thresholds, full=1.0, low=0.0, high=1.0)

    def objective(
        outputs: PyTree, labels: Array, progress: Array
    ) -> tuple[Array, dict[str, Array]]:
        logits = (
            outputs.get("current", outputs["logits"]) if isinstance(outputs, Mapping) else outputs
        )
        losses = multi_exit_cross_entropy(logits, labels)
        right = jax.vmap(lambda z: exact(predict(z), labels))(logits)  # [E, B]
        least, most = losses.argmin(axis=0), jax.vmap(certainty)(logits).argmax(axis=0)
        at = lambda values, tick: jnp.take_along_axis(values, tick[None], axis=0)[0]
        metrics = {
            "loss_least": at(losses, least),
            "loss_certain": at(losses, most),
            "tick_least": least + 1,
            "tick_certain": most + 1,
            "accuracy_certain": at(right, most),
            "accuracy_exit_last": right[-1],
        }
        loss = (metrics["loss_least"] + metrics["loss_certain"]) / 2
        return loss, row_means(metrics, labels)

    def criterion(operating_point: PyTree) -> Criterion:
        return criteria.gate_above(operating_point["threshold"], certainty)

    return Method(objective, criterion, candidates, predict)
