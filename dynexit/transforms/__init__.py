"""Transformations of a step, or of a model, that return another one."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.transforms.averaging import averaged as averaged
    from dynexit.transforms.averaging import averaged_step as averaged_step
    from dynexit.transforms.averaging import averaging_state as averaging_state
    from dynexit.transforms.best_so_far import best_so_far as best_so_far
    from dynexit.transforms.best_so_far import certainty as certainty
    from dynexit.transforms.per_token import TokenState as TokenState
    from dynexit.transforms.per_token import per_token as per_token
    from dynexit.transforms.stochastic_depth import dropped_blocks as dropped_blocks
    from dynexit.transforms.stochastic_depth import survival as survival

__getattr__, __dir__ = attach(__name__)
