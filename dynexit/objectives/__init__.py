"""Floor 1: what the network is trained on, from the losses of all exits."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.objectives import weights
    from dynexit.objectives.act import ActAccount, act_account, halting_sums
    from dynexit.objectives.distillation import distilled_cross_entropy, self_distillation
    from dynexit.objectives.mixture import halting_mixture
    from dynexit.objectives.multi_exit import deep_supervision, multi_exit_cross_entropy, weighted
    from dynexit.objectives.ponder import (
        PonderLoss,
        geometric_last,
        geometric_renormalised,
        halting_entropy,
        kl_posterior_prior,
        kl_prior_posterior,
        log_halting,
        ponder_loss,
    )
    from dynexit.objectives.stablemax import log_stablemax, stablemax_cross_entropy

__all__ = [
    "ActAccount",
    "PonderLoss",
    "act_account",
    "deep_supervision",
    "distilled_cross_entropy",
    "geometric_last",
    "geometric_renormalised",
    "halting_entropy",
    "halting_mixture",
    "halting_sums",
    "kl_posterior_prior",
    "kl_prior_posterior",
    "log_halting",
    "log_stablemax",
    "multi_exit_cross_entropy",
    "ponder_loss",
    "self_distillation",
    "stablemax_cross_entropy",
    "weighted",
    "weights",
]
__getattr__, __dir__ = attach(
    __name__,
    {
        "ActAccount": "act",
        "PonderLoss": "ponder",
        "act_account": "act",
        "deep_supervision": "multi_exit",
        "distilled_cross_entropy": "distillation",
        "geometric_last": "ponder",
        "geometric_renormalised": "ponder",
        "halting_entropy": "ponder",
        "halting_mixture": "mixture",
        "halting_sums": "act",
        "kl_posterior_prior": "ponder",
        "kl_prior_posterior": "ponder",
        "log_halting": "ponder",
        "log_stablemax": "stablemax",
        "multi_exit_cross_entropy": "multi_exit",
        "ponder_loss": "ponder",
        "self_distillation": "distillation",
        "stablemax_cross_entropy": "stablemax",
        "weighted": "multi_exit",
        "weights": "",
    },
)
