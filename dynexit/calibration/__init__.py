"""Temperatures and operating points from the calibration split, not from the reported split."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.calibration import rules as rules
    from dynexit.calibration.candidates import geometric_fractions as geometric_fractions
    from dynexit.calibration.candidates import levels as levels
    from dynexit.calibration.candidates import msdnet_thresholds as msdnet_thresholds
    from dynexit.calibration.candidates import quotas as quotas
    from dynexit.calibration.candidates import shared_thresholds as shared_thresholds
    from dynexit.calibration.candidates import threshold_candidates as threshold_candidates
    from dynexit.calibration.choose import Choice as Choice
    from dynexit.calibration.choose import choose as choose
    from dynexit.calibration.choose import refuse_same_split as refuse_same_split
    from dynexit.calibration.curve import Curve as Curve
    from dynexit.calibration.curve import curve as curve
    from dynexit.calibration.records import Records as Records
    from dynexit.calibration.records import records_of as records_of
    from dynexit.calibration.temperature import fit_temperature as fit_temperature
    from dynexit.calibration.temperature import mean_nll as mean_nll
    from dynexit.calibration.temperature import temperature_fit as temperature_fit

__getattr__, __dir__ = attach(__name__)
