"""Fixed points, recurrences and differential equations as steps of the engine."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.solvers.anderson import Mixing as Mixing
    from dynexit.solvers.anderson import anderson as anderson
    from dynexit.solvers.anderson import damped as damped
    from dynexit.solvers.fixed_point import FixedPoint as FixedPoint
    from dynexit.solvers.fixed_point import begin_fixed_point as begin_fixed_point
    from dynexit.solvers.fixed_point import fixed_point as fixed_point
    from dynexit.solvers.fixed_point import fixed_point_step as fixed_point_step
    from dynexit.solvers.fixed_point import implicit as implicit
    from dynexit.solvers.fixed_point import phantom as phantom
    from dynexit.solvers.newton_scan import Recurrence as Recurrence
    from dynexit.solvers.newton_scan import affine_scan as affine_scan
    from dynexit.solvers.newton_scan import check_elementwise as check_elementwise
    from dynexit.solvers.newton_scan import newton_scan as newton_scan
    from dynexit.solvers.ode import Solver as Solver
    from dynexit.solvers.ode import begin_ode as begin_ode
    from dynexit.solvers.ode import ode_step as ode_step

__getattr__, __dir__ = attach(__name__)
