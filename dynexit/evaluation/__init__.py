"""Evaluation of a trained network: answers, FLOPs and seconds."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.evaluation.batches import prepared as prepared
    from dynexit.evaluation.calibrate import Calibrated as Calibrated
    from dynexit.evaluation.calibrate import calibrate as calibrate
    from dynexit.evaluation.costs import RowCosts as RowCosts
    from dynexit.evaluation.costs import costs_of as costs_of
    from dynexit.evaluation.depth_diagnostics import DepthDiagnostics as DepthDiagnostics
    from dynexit.evaluation.depth_diagnostics import depth_diagnostics as depth_diagnostics
    from dynexit.evaluation.depth_diagnostics import depth_table as depth_table
    from dynexit.evaluation.depth_diagnostics import proposed_exits as proposed_exits
    from dynexit.evaluation.latency import Timing as Timing
    from dynexit.evaluation.latency import measure as measure
    from dynexit.evaluation.measure import Evaluated as Evaluated
    from dynexit.evaluation.measure import evaluate as evaluate
    from dynexit.evaluation.phases import Phases as Phases
    from dynexit.evaluation.phases import phases as phases
    from dynexit.evaluation.phases import phases_by_cut as phases_by_cut
    from dynexit.evaluation.phases import similarity as similarity
    from dynexit.evaluation.preflight import check_experiment as check_experiment
    from dynexit.evaluation.recording import fitted as fitted
    from dynexit.evaluation.recording import record as record
    from dynexit.evaluation.reports import pictures as pictures
    from dynexit.evaluation.reports import plots as plots
    from dynexit.evaluation.reports.reporting import markdown as markdown
    from dynexit.evaluation.reports.reporting import report as report
    from dynexit.evaluation.reports.reporting import summary as summary

__getattr__, __dir__ = attach(__name__)
