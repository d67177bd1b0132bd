"""Adaptive computation time: the answer is a mean weighted by learned halting probabilities."""

from collections.abc import Sequence

from dynexit import criteria
from dynexit.calibration.candidates import levels
from dynexit.core.shapes import AnyArray, Array, Float, PyTree
from dynexit.core.types import Criterion, Method
from dynexit.methods.answers import accuracy, predict, row_means
from dynexit.objectives.act import act_account
from dynexit.objectives.multi_exit import multi_exit_cross_entropy

THRESHOLDS = (*(j / 20 for j in range(20)), 0.975, 0.99, 1.0)  # 1.0 is never passed: full depth


def act(
    tau: float = 0.01,
    label_smoothing: float = 0.0,
    thresholds: Sequence[float] | Float[AnyArray, "K"] = THRESHOLDS,
) -> Method:
    """The loss of the mean answer plus a ponder cost, and an exit once the probability is spent.

    Training: L_b = CE_b(mean answer at the halting step) + tau mean over the places (n + R).

    Inference: a row exits at the first step where h_n > t at every place. Its answer is the mean as
    if this step were the last.

    Args:
      tau: cost of a step, at least 0. If it is too high, every row takes one step; if it is too
        low, every row takes all steps.
      label_smoothing: in 0..1.
      thresholds: candidates for t, `[K]`, each in 0..1; 1, full depth, is added. Up to 1 - epsilon
        of the model, t is ACT's own rule with epsilon = 1 - t (exactly so where a row has one
        halting logit); above it, steps of weight 0 are added.

    Returns:
      `Method`. The model is an averaged one (`dx.transforms.averaged`,
      `dx.models.UniversalTransformer(halting=...)`) with one exit per step:
      `{"logits": [N, B, ..., C], "accumulated": [N, B] or [N, B, ...], "gate": [N, B]}`. An
      operating point is `{"threshold": []}`. Metrics: ponder (n + R) and mean_steps (n), both means
      over places; row_steps, the steps of a row until all its places have halted; at_limit, the
      fraction of rows with a place that never halted; accuracy_halted, of the answer at the halting
      step; accuracy_exit_first.

    Raises:
      ValueError: `tau` negative, `thresholds` outside 0..1; from the objective,
        outputs that are not averaged.

    Example:
      >>> import jax.numpy as jnp
      >>> method = act(tau=0.1)
      >>> sums = jnp.array([[0.3, 0.9], [0.7, 1.0], [1.0, 1.0]])  # [N=3, B=2]
      >>> outputs = {"logits": jnp.zeros((3, 2, 4)), "accumulated": sums, "gate": sums}
      >>> loss, metrics = method.objective(outputs, jnp.array([0, 1]), jnp.float32(0.0))
      >>> [round(x, 4) for x in loss.tolist()]  # ln 4 + 0.1 (3 + 0.3) and ln 4 + 0.1 (2 + 0.1)
      [1.7163, 1.5963]

    Source: Graves 2016; Dehghani et al. 2019 for places. Deviations: the last step always gets the
      remainder; thresholds other than 1 - epsilon are not in the papers. No entropy of halting is
      logged, because the weights are those of a mean and not a distribution of the halting step.
    """
    if not tau >= 0:
        raise ValueError(f"`tau` must be at least 0, got {tau}")
    candidates = levels(thresholds, full=1.0, low=0.0, high=1.0)

    def objective(
        outputs: PyTree, labels: Array, progress: Array
    ) -> tuple[Array, dict[str, Array]]:
        if not isinstance(outputs, dict) or "accumulated" not in outputs:
            raise ValueError(
                "`outputs` must have the entry 'accumulated': act needs an averaged model "
                "(dx.transforms.averaged)"
            )
        logits, account = outputs["logits"], act_account(outputs["accumulated"])
        places = tuple(range(1, account.updates.ndim))
        ponder = account.ponder.mean(axis=places)
        halted = logits[-1]  # the mean at the halting step: later steps have weight 0
        metrics = {
            "ponder": ponder,
            "mean_steps": account.updates.astype(ponder.dtype).mean(axis=places),
            "row_steps": account.updates.max(axis=places),
            "at_limit": account.at_limit.any(axis=places),
            "accuracy_halted": accuracy(halted, labels),
            "accuracy_exit_first": accuracy(logits[0], labels),
        }
        loss = multi_exit_cross_entropy(halted[None], labels, label_smoothing)[0] + tau * ponder
        return loss, row_means(metrics, labels)

    def criterion(operating_point: PyTree) -> Criterion:
        return criteria.gate_above(operating_point["threshold"])

    return Method(objective, criterion, candidates, predict)
