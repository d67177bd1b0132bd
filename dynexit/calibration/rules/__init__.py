"""Rules by which one operating point is chosen from a curve; each says what it guarantees."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.calibration.rules.accept_loss import accept_loss as accept_loss
    from dynexit.calibration.rules.budget import budget as budget
    from dynexit.calibration.rules.conformal import conformal_risk as conformal_risk
    from dynexit.calibration.rules.risk_control import risk_control as risk_control
    from dynexit.calibration.rules.rule import NoPoint as NoPoint
    from dynexit.calibration.rules.rule import Rule as Rule

__getattr__, __dir__ = attach(__name__)
