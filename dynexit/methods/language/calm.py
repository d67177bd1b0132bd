"""CALM: every layer of a language model predicts, and each token exits once it is certain."""

from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from dynexit.calibration.candidates import shared_thresholds
from dynexit.calibration.records import Records
from dynexit.core.checks import positive_integer
from dynexit.core.labels import share
from dynexit.core.shapes import Array, Float, PyTree
from dynexit.core.stages import one_depth
from dynexit.core.types import Candidates, Criterion, Method, Model
from dynexit.methods.answers import predict, row_means
from dynexit.methods.language.calm_criterion import Decay, calm_criterion
from dynexit.methods.language.exit_losses import exit_losses
from dynexit.objectives import weights as depth_weights
from dynexit.objectives.multi_exit import weighted

Aggregation = Literal["linear", "uniform", "geometric"]
AGGREGATIONS: tuple[Aggregation, ...] = ("linear", "uniform", "geometric")


def calm(
    measure: Literal["margin", "saturation"] = "margin",
    tau: float = 4.0,
    decay: Decay = "scaled",
    weights: Aggregation = "linear",
    shared: int = 40,
) -> Method:
    """CALM's training, and exits by confidence against a threshold that falls over the text.

    Training: L_b = sum_i w_i CE_ib, w_i = i / sum_j j over the exits i = 1..E. All exits share the
    final norm and the output matrix.

    Inference: see `calm_criterion`; one lambda for all exits. In evaluation a row is a window and
    exits once every place would. For tokens that exit one by one pass `calm_criterion` to
    `dx.decoding.Exits`, with the threshold that `risk_controlled_threshold` finds.

    Args:
      measure: "margin" or "saturation". The classifier belongs to a trained network, see
        `fit_calm_classifier`.
      tau: rate of the decay, at least 0.
      decay: "scaled", the released code's, or "clipped", the paper's.
      weights: of the exits: "linear", "uniform", or "geometric", w_i proportional to 2^i.
      shared: candidates.

    Returns:
      `Method`, for models with a decoder and exits with "hidden" (`dx.models.CausalLM`). An
      operating point is `{"threshold": [E-1]}`. Metrics: loss_exit_first, loss_exit_last. Accuracy
      counts places.

    Raises:
      TypeError, ValueError: an argument out of range; from the loss, a model without a decoder.

    Example:
      >>> import dynexit as dx, jax
      >>> model = dx.models.CausalLM(width=16, depth=3, heads=2).build(dx.Tokens(50), 50)
      >>> params, tokens = model.init(jax.random.key(0)), jnp.ones((2, 8), jnp.int32)
      >>> loss, metrics = calm().loss(
      ...     model, params, tokens, tokens, jax.random.key(1), jnp.float32(0.5)
      ... )
      >>> loss.shape, sorted(metrics)
      ((2,), ['loss_exit_first', 'loss_exit_last'])

    Source: Schuster et al. 2022, CALM, arXiv 2207.07061; t5x `contrib/calm` for the other weights.
      Deviation: no z-loss.
    """
    if measure not in ("margin", "saturation"):
        raise ValueError(f"`measure` must be 'margin' or 'saturation', got {measure!r}")
    calm_criterion(0.5, measure, tau, decay)  # refuses wrong arguments here
    calm_weights(1, weights)
    positive_integer(shared, "shared")

    def loss(
        model: Model, params: PyTree, inputs: PyTree, labels: Array, key: Array, progress: Array
    ) -> tuple[Array, dict[str, Array]]:
        exits = one_depth(model)
        losses = exit_losses(model, params, inputs, labels, jnp.ones(exits, bool))
        metrics = {"loss_exit_first": losses[0], "loss_exit_last": losses[-1]}
        return weighted(losses, calm_weights(exits, weights)), row_means(metrics, labels)

    def criterion(operating_point: PyTree) -> Criterion:
        return calm_criterion(operating_point["threshold"], measure, tau, decay)

    def full(exits: int, fitted: PyTree) -> PyTree:
        return {"threshold": np.full(exits - 1, np.inf, np.float32)}

    def points(records: Records, fitted: PyTree, costs: Any) -> PyTree:
        return {"threshold": shared_thresholds(records.scores, shared)}

    candidates = Candidates(full, points)
    return Method(None, criterion, candidates, predict, loss=loss, score=share)


def calm_weights(exits: int, weights: Aggregation = "linear") -> Float[Array, "E"]:
    """Weights of the exits, sum 1: w_i proportional to i, to 1 or to 2^i.

    Example:
      >>> [round(w, 4) for w in calm_weights(6).tolist()]
      [0.0476, 0.0952, 0.1429, 0.1905, 0.2381, 0.2857]

    Source: Schuster et al. 2022, CALM, section 3.5; t5x's `aggregation_weights`.
    """
    if weights not in AGGREGATIONS:
        raise ValueError(f"`weights` must be one of {', '.join(AGGREGATIONS)}, got {weights!r}")
    if weights == "linear":
        return depth_weights.linear(exits)
    if weights == "uniform":
        return depth_weights.uniform(exits)
    rising = jnp.exp2(jnp.arange(exits, dtype=jnp.float32) - exits)
    return rising / rising.sum()
