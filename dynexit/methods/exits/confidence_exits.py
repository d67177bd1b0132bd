"""Confidence exits: deep supervision, then each row leaves where its likeliest class is likely
enough.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dynexit import criteria
from dynexit.calibration.candidates import RATIOS, geometric_fractions, threshold_candidates
from dynexit.calibration.temperature import fit_temperature
from dynexit.core.checks import positive_integer
from dynexit.core.types import Array, Criterion, Method, PyTree
from dynexit.criteria import scores
from dynexit.methods.answers import accuracy, logits_of, predict
from dynexit.objectives import weights as depth_weights
from dynexit.objectives.distillation import self_distillation
from dynexit.objectives.multi_exit import multi_exit_cross_entropy, weighted

NAMED_WEIGHTS = {"uniform": depth_weights.uniform, "linear": depth_weights.linear}


def confidence_exits(
    weights: str | Callable[[Array], Array] | Any = "uniform",
    label_smoothing: float = 0.0,
    distill: float = 0.0,
    distill_temperature: float = 1.0,
    ratios: Any = RATIOS,
    shared: int = 40,
) -> Method:
    """The exits of BranchyNet, SDN and MSDNet, with one temperature per exit fitted on the
    calibration split.

    Training: L_b = sum_e w_e CE_eb + distill sum_{e<E-1} w_e T^2 KL(p_{E-1} || p_e). Inference:
      leave where
    max_c softmax(z_e / T_e)_c > t_e. The candidates are MSDNet's geometric family, thresholds
    shared by all exits, and full depth.

    Args:
      weights: "uniform" (1 / E each) or "linear" (rising with the depth); or `[E]`; or a function of
        `progress` that returns them (`lambda p: weights.sdn(costs / costs[-1], p)`).
      label_smoothing: in 0..1.
      distill: weight of the distillation from the last exit, at least 0.
      distill_temperature: T in training, above 0.
      ratios: of the geometric family of candidates.
      shared: number of candidates with one threshold for all exits.

    Returns:
      `Method`. Outputs are logits `[E, B, C]` or a dict with "logits"; a point is `{"threshold":
      [E-1], "temperature": [E]}`.
      Metrics: accuracy_exit_first, accuracy_exit_last, loss_exit_first, loss_exit_last; with
        distillation also distillation.

    Raises:
      TypeError, ValueError: `distill` negative, `distill_temperature` or one of `ratios` not above
        0, `shared` below 1; from the objective, weights of a wrong shape.

    Example:
      >>> method = confidence_exits()
      >>> loss, metrics = method.objective(jnp.zeros((3, 2, 4)), jnp.array([0, 1]), jnp.float32(0.0))
      >>> loss.shape, sorted(metrics)[0]
      ((2,), 'accuracy_exit_first')

    Source: Teerapittayanon et al. 2016, BranchyNet (there with entropy); Kaya et al. 2019, SDN;
      Huang et al. 2018, MSDNet (there
    with weights 1 and without temperatures); the temperatures of Guo et al. 2017.
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
            "loss_exit_first": _mean(losses[0]),
            "loss_exit_last": _mean(losses[-1]),
        }
        if distill > 0:
            taught = weighted(self_distillation(logits, distill_temperature), w)
            loss = loss + distill * taught
            metrics["distillation"] = _mean(taught)
        return loss, metrics

    def criterion(operating_point: PyTree) -> Criterion:
        return criteria.max_probability_above(
            operating_point["threshold"], operating_point["temperature"]
        )

    def candidates(outputs: PyTree, labels: Array, costs: Array) -> PyTree:
        logits = jnp.asarray(logits_of(outputs))
        temperature = fit_temperature(logits, jnp.asarray(labels))
        confidence = jax.lax.map(lambda x: scores.max_probability(*x), (logits, temperature))
        threshold = threshold_candidates(confidence, ratios, shared)
        return {"threshold": threshold, "temperature": jnp.tile(temperature, (len(threshold), 1))}

    return Method(objective, criterion, candidates, predict)


def _exit_weights(weights: Any, exits: int, progress: Array) -> Any:
    if isinstance(weights, str):
        return NAMED_WEIGHTS[weights](exits)
    return weights(progress) if callable(weights) else weights


def _mean(values: Array) -> Array:
    return values.mean(dtype=jnp.float32)
