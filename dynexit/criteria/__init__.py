"""Exit rules as `Criterion`s of pure functions; thresholds are traced arrays."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.criteria import scores as scores
    from dynexit.criteria.combinators import all_of as all_of
    from dynexit.criteria.combinators import any_of as any_of
    from dynexit.criteria.combinators import clipped_decay as clipped_decay
    from dynexit.criteria.combinators import consecutive as consecutive
    from dynexit.criteria.combinators import decaying as decaying
    from dynexit.criteria.combinators import not_before as not_before
    from dynexit.criteria.combinators import scaled_decay as scaled_decay
    from dynexit.criteria.confidence import at_depth as at_depth
    from dynexit.criteria.confidence import energy_below as energy_below
    from dynexit.criteria.confidence import entropy_below as entropy_below
    from dynexit.criteria.confidence import margin_above as margin_above
    from dynexit.criteria.confidence import max_probability_above as max_probability_above
    from dynexit.criteria.halting import cumulative_halting_above as cumulative_halting_above
    from dynexit.criteria.halting import gate_above as gate_above
    from dynexit.criteria.halting import halting_sum_above as halting_sum_above
    from dynexit.criteria.sampled import halting_sampled as halting_sampled
    from dynexit.criteria.settling import change_below as change_below
    from dynexit.criteria.settling import divergence_below as divergence_below
    from dynexit.criteria.settling import patience as patience
    from dynexit.criteria.settling import residual_below as residual_below
    from dynexit.criteria.settling import saturation_above as saturation_above

__getattr__, __dir__ = attach(__name__)
