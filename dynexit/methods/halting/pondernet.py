"""PonderNet: a learned halting probability per step, and an exit at a quantile of its sum."""

from collections.abc import Callable, Sequence

import jax

from dynexit import criteria
from dynexit.calibration.candidates import levels
from dynexit.core.shapes import AnyArray, Array, Float, PyTree
from dynexit.core.types import Criterion, Method
from dynexit.engine.replay import replay
from dynexit.methods.answers import accuracy, predict, row_means
from dynexit.objectives.multi_exit import multi_exit_cross_entropy
from dynexit.objectives.ponder import geometric_last, kl_prior_posterior, ponder_loss

QUANTILES = (*(j / 40 for j in range(40)), 0.99, 0.999, 1.0)  # 1.0 is never passed: full depth


def pondernet(
    prior_rate: float = 0.2,
    beta: float = 0.01,
    prior: Callable[[int, float], Float[Array, "N"]] = geometric_last,
    divergence: Callable[
        [Float[Array, "N B"], Float[Array, "N"]], Float[Array, "B"]
    ] = kl_prior_posterior,
    label_smoothing: float = 0.0,
    quantiles: Sequence[float] | Float[AnyArray, "K"] = QUANTILES,
) -> Method:
    """Halting as a latent variable with a truncated geometric prior, and a deterministic exit.

    Training: L_b = sum_n p_nb CE_nb + beta D(p_b, g), where the last step takes the rest of p.

    Inference: a row exits at the first n with F_n = sum_{i<=n} p_i > q.

    Args:
      prior_rate: rate of the prior, in 0..1 exclusive. The prior expects 1 / rate steps where N is
        large.
      beta: weight of the KL; 0.01 from scratch, 0.5 in PALBERT's fine-tuning.
      prior: `prior(N, rate) -> log g [N]`: `geometric_last` or `geometric_renormalised`.
      divergence: `kl_prior_posterior`, of the released code, or `kl_posterior_prior`, of the paper.
      label_smoothing: in 0..1.
      quantiles: candidates for q, `[K]`, each in 0..1; 1, full depth, is added.

    Returns:
      `Method`. Outputs are `{"logits": [N, B, C], "halt_logit": [N, B]}`, one exit per step. An
      operating point is `{"quantile": []}`. Metrics: expected_loss, kl, mean_steps (of p),
      halting_entropy; at the Q-exit with q = 0.5, q_accuracy, q_steps and q_at_limit, the fraction
      of rows at the last step; accuracy_exit_first, accuracy_exit_last.

    Raises:
      ValueError: `beta` negative, `prior_rate` not between 0 and 1, `quantiles` outside 0..1.

    Example:
      >>> import jax.numpy as jnp
      >>> method = pondernet()
      >>> outputs = {"logits": jnp.zeros((5, 2, 4)), "halt_logit": jnp.zeros((5, 2))}
      >>> loss, metrics = method.objective(outputs, jnp.array([0, 1]), jnp.float32(0.0))
      >>> # F_1 = 0.5 is not above 0.5
      >>> print(f"{metrics['mean_steps']:.4f} {metrics['q_steps']:.0f}")
      1.9375 2

    Source: Banino et al. 2021, PonderNet; Balagansky and Gavrilov 2022, PALBERT, for the Q-exit
      and, from its released code, the prior's tail and the direction of the KL.
    """
    candidates = levels(quantiles, full=1.0, name="quantile", low=0.0, high=1.0)
    if not beta >= 0:
        raise ValueError(f"`beta` must be at least 0, got {beta}")
    prior(1, prior_rate)  # refuses a wrong rate here, not at the first update

    def objective(
        outputs: PyTree, labels: Array, progress: Array
    ) -> tuple[Array, dict[str, Array]]:
        if not isinstance(outputs, dict) or not {"logits", "halt_logit"} <= set(outputs):
            raise ValueError(
                "`outputs` must have the entries 'logits' and 'halt_logit': pondernet needs a "
                "model that halts"
            )
        logits, halt_logits = outputs["logits"], outputs["halt_logit"]
        steps = len(logits)
        losses = multi_exit_cross_entropy(logits, labels, label_smoothing)
        ponder = ponder_loss(losses, halt_logits, prior(steps, prior_rate), beta, divergence)
        halted = replay(criteria.cumulative_halting_above(0.5), jax.lax.stop_gradient(outputs))
        metrics = {
            "expected_loss": ponder.expected_loss,
            "kl": ponder.kl,
            "mean_steps": ponder.mean_steps,
            "halting_entropy": ponder.entropy,
            "q_accuracy": accuracy(halted.output, labels),
            "q_steps": halted.exit + 1,
            "q_at_limit": halted.exit == steps - 1,
            "accuracy_exit_first": accuracy(logits[0], labels),
            "accuracy_exit_last": accuracy(logits[-1], labels),
        }
        return ponder.loss, row_means(metrics, labels)

    def criterion(operating_point: PyTree) -> Criterion:
        return criteria.cumulative_halting_above(operating_point["quantile"])

    return Method(objective, criterion, candidates, predict)
