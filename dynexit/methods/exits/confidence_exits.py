"""Confidence exits: a row exits once the probability of its likeliest class passes a threshold."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from dynexit import criteria
from dynexit.calibration.candidates import RATIOS, geometric_fractions, threshold_candidates
from dynexit.calibration.records import Records
from dynexit.calibration.temperature import temperature_fit
from dynexit.core.checks import positive_integer
from dynexit.core.shapes import AnyArray, Array, Float, PyTree
from dynexit.core.types import Candidates, Criterion, Method
from dynexit.methods.answers import accuracy, logits_of, predict
from dynexit.objectives import weights as depth_weights
from dynexit.objectives.distillation import self_distillation
from dynexit.objectives.multi_exit import mean_over_rows, multi_exit_cross_entropy, weighted

Weights: TypeAlias = (
    str | Sequence[float] | Float[AnyArray, "E"] | Callable[[Float[Array, ""]], Float[Array, "E"]]
)
NAMED_WEIGHTS = {"uniform": depth_weights.uniform, "linear": depth_weights.linear}


def confidence_exits(
    weights: Weights = "uniform",
    label_smoothing: float = 0.0,
    distill: float = 0.0,
    distill_temperature: float = 1.0,
    ratios: Sequence[float] | Float[AnyArray, "K"] = RATIOS,
    shared: int = 40,
) -> Method:
    """The exits of BranchyNet, SDN and MSDNet, with one calibrated temperature per exit.

    Training: L_b = sum_e w_e CE_eb + distill sum_{e<E-1} w_e T^2 KL(p_{E-1} || p_e).

    Inference: a row exits where max_c softmax(z_e / T_e)_c > t_e. The temperatures T_e are fitted
    on the calibration split. The candidates are the geometric family of MSDNet, thresholds shared
    by all exits, and full depth.

    Args:
      weights: "uniform" (1 / E each) or "linear" (rising with the depth); or `[E]`; or a function
        of `progress` that returns them (`lambda p: weights.sdn(costs / costs[-1], p)`).
      label_smoothing: in 0..1.
      distill: weight of the distillation from the last exit, at least 0.
      distill_temperature: T in training, above 0.
      ratios: of the geometric family of candidates.
      shared: number of candidates with one threshold for all exits.

    Returns:
      `Method`. Outputs are logits `[E, B, C]`, or `[E, B, ..., C]` with an answer at each place of
      a row (without distillation), or a dict with "logits". An operating point is
      `{"threshold": [E-1], "temperature": [E]}`. Metrics: accuracy_exit_first, accuracy_exit_last,
      loss_exit_first, loss_exit_last; with distillation also distillation.

    Raises:
      TypeError, ValueError: `distill` negative, `distill_temperature` or one of `ratios` not above
        0, `shared` below 1; from the objective, weights of a wrong shape.

    Example:
      >>> import jax.numpy as jnp
      >>> method = confidence_exits()
      >>> labels, progress = jnp.array([0, 1]), jnp.float32(0.0)
      >>> loss, metrics = method.objective(jnp.zeros((3, 2, 4)), labels, progress)
      >>> loss.shape, sorted(metrics)[0]
      ((2,), 'accuracy_exit_first')

    Source: Teerapittayanon et al. 2016, BranchyNet (there with entropy); Kaya et al. 2019, SDN;
      Huang et al. 2018, MSDNet (there with weights 1 and without temperatures); the temperatures of
      Guo et al. 2017.
    """
    if not distill >= 0:
        raise ValueError(f"`distill` must be at least 0, got {distill}")
    if not distill_temperature > 0:
        raise ValueError(f"`distill_temperature` must be above 0, got {distill_temperature}")
    if isinstance(weights, str) and weights not in NAMED_WEIGHTS:
        raise ValueError(f"`weights` must be one of {', '.join(NAMED_WEIGHTS)}, got {weights!r}")
    geometric_fractions(ratios, 1)  # refuses wrong ratios here and not after training
    positive_integer(shared, "shared")

    def objective(
        outputs: PyTree, labels: Array, progress: Array
    ) -> tuple[Array, dict[str, Array]]:
        logits = logits_of(outputs)
        losses = multi_exit_cross_entropy(logits, labels, label_smoothing)
        w = _exit_weights(weights, len(logits), progress)
        loss = weighted(losses, w)
        metrics = {
            "accuracy_exit_first": accuracy(logits[0], labels),
            "accuracy_exit_last": accuracy(logits[-1], labels),
            "loss_exit_first": mean_over_rows(losses[0], labels),
            "loss_exit_last": mean_over_rows(losses[-1], labels),
        }
        if distill > 0:
            taught = weighted(self_distillation(logits, distill_temperature), w)
            loss = loss + distill * taught
            metrics["distillation"] = mean_over_rows(taught, labels)
        return loss, metrics

    def criterion(operating_point: PyTree) -> Criterion:
        return criteria.max_probability_above(
            operating_point["threshold"], operating_point["temperature"]
        )

    def full(exits: int, fitted: PyTree) -> PyTree:
        return {"threshold": np.full(exits - 1, np.inf, np.float32), **fitted}

    def points(records: Records, fitted: PyTree, costs: Any) -> PyTree:
        threshold = threshold_candidates(records.scores, ratios, shared)
        temperature = np.tile(fitted["temperature"], (len(threshold), 1))
        return {"threshold": threshold, "temperature": temperature}

    return Method(objective, criterion, Candidates(full, points, temperature_fit()), predict)


def _exit_weights(weights: Weights, exits: int, progress: Array) -> Any:
    if isinstance(weights, str):
        return NAMED_WEIGHTS[weights](exits)
    return weights(progress) if callable(weights) else weights
