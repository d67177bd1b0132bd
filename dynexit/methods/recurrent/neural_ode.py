"""Neural ODEs: the loss at the end of the integration, and an exit by integrated time."""

from collections.abc import Sequence

import jax.numpy as jnp

from dynexit import criteria
from dynexit.calibration.candidates import levels
from dynexit.core.shapes import AnyArray, Array, Float, PyTree
from dynexit.core.types import Criterion, Method
from dynexit.methods.answers import accuracy, logits_of, predict, row_means
from dynexit.objectives.multi_exit import multi_exit_cross_entropy

ARRIVED = 0.999
# 1.0 is never passed: all steps, most of them after the end of the integration
THRESHOLDS = (*(j / 10 for j in range(10)), ARRIVED, 1.0)


def neural_ode(
    early: float = 0.0,
    label_smoothing: float = 0.0,
    thresholds: Sequence[float] | Float[AnyArray, "K"] = THRESHOLDS,
) -> Method:
    """The loss at the end of the integration, optionally with the mean loss of all exits.

    Training: L_b = (1 - early) CE_b(y(T)) + early mean_e CE_{e,b}, differentiated through the steps
    of the solver.

    Inference: a row exits at the first step that ends past the fraction t of the integration time.
    t = 0.999 is the end of the integration; a smaller t is a shorter network.

    Args:
      early: weight of the mean over all exits, in 0..1; above 0, answers at t < 1 are trained.
      label_smoothing: in 0..1.
      thresholds: candidates for t, `[K]`, each in 0..1; 1, full depth, is added.

    Returns:
      `Method`. The outputs of the model are `{"logits": [E, B, C], "gate": [E, B]}` with the
      fraction of the time in "gate" (`dx.models.NeuralOde`, `dx.solvers.ode_step`). An operating
      point is `{"threshold": []}`. Metrics: solver_steps, those to the end, rejected ones included;
      arrived, the fraction of rows that reach the end in E steps; accuracy_exit_first and accuracy.

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
      without an adjoint equation; the loss of all exits and the exit before the end are not in the
      paper. The tolerance belongs to the model and is no operating point.
    """
    if not 0 <= early <= 1:
        raise ValueError(f"`early` must lie in 0..1, got {early}")
    candidates = levels(thresholds, full=1.0, low=0.0, high=1.0)

    def objective(
        outputs: PyTree, labels: Array, progress: Array
    ) -> tuple[Array, dict[str, Array]]:
        if not isinstance(outputs, dict) or "gate" not in outputs:
            raise ValueError(
                "`outputs` must have the entry 'gate', the fraction of the time: neural_ode needs "
                "dx.solvers.ode_step"
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
