"""Continuous depth: the loss where the solver arrives, and rows that leave once their own steps
have taken them far enough.
"""

from typing import Any

import jax.numpy as jnp

from dynexit import criteria
from dynexit.calibration.candidates import levels
from dynexit.core.types import Array, Criterion, Method, PyTree
from dynexit.methods.answers import accuracy, logits_of, predict, row_means
from dynexit.objectives.multi_exit import multi_exit_cross_entropy

ARRIVED = 0.999
THRESHOLDS = (
    *(j / 10 for j in range(10)),
    ARRIVED,
    1.0,
)  # 1.0 is never passed: all steps, most of them after arrival


def neural_ode(
    early: float = 0.0, label_smoothing: float = 0.0, thresholds: Any = THRESHOLDS
) -> Method:
    """The loss at the end of the time, and beside it, if wanted, that of all answers on the way.

    Training: L_b = (1 - early) CE_b(y(T)) + early mean_e CE_{e,b}, through the steps that the
      solver takes. Inference: leave at the
    first step whose end has more than the fraction t of the time behind it; t = 0.999 is arrival,
    and less a shorter network.

    Args:
      early: weight of the mean over all exits, in 0..1; with it answers at t < 1 are worth reading.
      label_smoothing: in 0..1.
      thresholds: candidates for t, `[K]`, each in 0..1; 1, full depth, is added.

    Returns:
      `Method`. The model's outputs are `{"logits": [E, B, C], "gate": [E, B]}` with the fraction of
      the time in "gate" (`dx.models.NeuralOde`, `dx.solvers.ode_step`); a point is `{"threshold":
      []}`. Metrics: solver_steps, rejected ones among them, until arrival; arrived, the fraction of
      rows that are there in E steps; accuracy_exit_first and accuracy.

    Raises:
      ValueError: `early` or `thresholds` outside 0..1; from the objective,
        outputs without "gate".

    Example:
      >>> way = jnp.array([[0.4, 0.3], [1.0, 0.6], [1.0, 1.0]])  # [E=3, B=2]
      >>> outputs = {"logits": jnp.zeros((3, 2, 4)), "gate": way}
      >>> loss, metrics = neural_ode().objective(outputs, jnp.array([0, 1]), jnp.float32(0.0))
      >>> float(metrics["solver_steps"]), float(metrics["arrived"])
      (2.5, 1.0)

    Source: Chen et al. 2018, arXiv 1806.07366. Deviations: gradients are those of the steps taken,
      no adjoint equation; the loss on
    the way, and leaving before the end, are ours. The tolerance is the model's and no operating
    point.
    """
    if not 0 <= early <= 1:
        raise ValueError(f"`early` must lie in 0..1, got {early}")
    candidates = levels(thresholds, full=1.0, low=0.0, high=1.0)

    def objective(
        outputs: PyTree, labels: Array, progress: Array
    ) -> tuple[Array, dict[str, Array]]:
        if not isinstance(outputs, dict) or "gate" not in outputs:
            raise ValueError(
                "`outputs` must have the entry 'gate', the fraction of the time: neural_ode wants dx.solvers.ode_step"
            )
        logits, there = logits_of(outputs), outputs["gate"] > ARRIVED
        wanted = logits if early else logits[-1:]
        losses = multi_exit_cross_entropy(wanted, labels, label_smoothing)
        metrics = {
            "solver_steps": jnp.minimum((~there).sum(axis=0) + 1, len(there)),
            "arrived": there[-1],
            "accuracy_exit_first": accuracy(logits[0], labels),
            "accuracy": accuracy(logits[-1], labels),
        }
        return (1 - early) * losses[-1] + early * losses.mean(axis=0), row_means(metrics, labels)

    def criterion(operating_point: PyTree) -> Criterion:
        return criteria.gate_above(operating_point["threshold"])

    return Method(objective, criterion, candidates, predict)
