"""Training objectives: losses per exit, weights of exits, ACT, PonderNet, distillation."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.objectives import weights as weights
    from dynexit.objectives.act import ActAccount as ActAccount
    from dynexit.objectives.act import act_account as act_account
    from dynexit.objectives.act import halting_sums as halting_sums
    from dynexit.objectives.chunked_cross_entropy import (
        chunked_cross_entropy as chunked_cross_entropy,
    )
    from dynexit.objectives.distillation import distilled_cross_entropy as distilled_cross_entropy
    from dynexit.objectives.distillation import self_distillation as self_distillation
    from dynexit.objectives.mixture import halting_mixture as halting_mixture
    from dynexit.objectives.multi_exit import deep_supervision as deep_supervision
    from dynexit.objectives.multi_exit import mean_over_rows as mean_over_rows
    from dynexit.objectives.multi_exit import multi_exit_cross_entropy as multi_exit_cross_entropy
    from dynexit.objectives.multi_exit import weighted as weighted
    from dynexit.objectives.ponder import PonderLoss as PonderLoss
    from dynexit.objectives.ponder import geometric_last as geometric_last
    from dynexit.objectives.ponder import geometric_renormalised as geometric_renormalised
    from dynexit.objectives.ponder import halting_entropy as halting_entropy
    from dynexit.objectives.ponder import kl_posterior_prior as kl_posterior_prior
    from dynexit.objectives.ponder import kl_prior_posterior as kl_prior_posterior
    from dynexit.objectives.ponder import log_halting as log_halting
    from dynexit.objectives.ponder import ponder_loss as ponder_loss
    from dynexit.objectives.stablemax import log_stablemax as log_stablemax
    from dynexit.objectives.stablemax import stablemax_cross_entropy as stablemax_cross_entropy

__getattr__, __dir__ = attach(__name__)
