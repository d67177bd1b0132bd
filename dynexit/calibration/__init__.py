"""Floor 1: temperatures and operating points from a calibration split, never from the split that will be reported."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.calibration.candidates import (
        geometric_fractions,
        msdnet_thresholds,
        quotas,
        shared_thresholds,
        threshold_candidates,
    )
    from dynexit.calibration.choose import Choice, choose, refuse_same_split
    from dynexit.calibration.curve import Curve, Predictions, curve
    from dynexit.calibration.temperature import fit_temperature, mean_nll

__all__ = [
    "Choice",
    "Curve",
    "Predictions",
    "choose",
    "curve",
    "fit_temperature",
    "geometric_fractions",
    "mean_nll",
    "msdnet_thresholds",
    "quotas",
    "refuse_same_split",
    "shared_thresholds",
    "threshold_candidates",
]
__getattr__, __dir__ = attach(
    __name__,
    {
        "Choice": "choose",
        "Curve": "curve",
        "Predictions": "curve",
        "choose": "choose",
        "curve": "curve",
        "fit_temperature": "temperature",
        "geometric_fractions": "candidates",
        "mean_nll": "temperature",
        "msdnet_thresholds": "candidates",
        "quotas": "candidates",
        "refuse_same_split": "choose",
        "shared_thresholds": "candidates",
        "threshold_candidates": "candidates",
    },
)
