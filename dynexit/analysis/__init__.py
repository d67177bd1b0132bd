"""Floor 3: what a trained network gets right, what that costs, how long it takes, and reports and pictures of it."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.analysis import pictures, plots
    from dynexit.analysis.costs import RowCosts, costs_of
    from dynexit.analysis.evaluation import Evaluated, evaluate
    from dynexit.analysis.latency import Timing, measure
    from dynexit.analysis.phases import Phases, phases, phases_by_cut, similarity
    from dynexit.analysis.predictions import predict, prepared
    from dynexit.analysis.reporting import markdown, report, summary

__all__ = [
    "Evaluated",
    "Phases",
    "RowCosts",
    "Timing",
    "costs_of",
    "evaluate",
    "markdown",
    "measure",
    "phases",
    "phases_by_cut",
    "pictures",
    "plots",
    "predict",
    "prepared",
    "report",
    "similarity",
    "summary",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "RowCosts": "costs",
        "costs_of": "costs",
        "Evaluated": "evaluation",
        "evaluate": "evaluation",
        "Timing": "latency",
        "measure": "latency",
        "pictures": "",
        "plots": "",
        "predict": "predictions",
        "prepared": "predictions",
        "markdown": "reporting",
        "report": "reporting",
        "summary": "reporting",
        "Phases": "phases",
        "phases": "phases",
        "phases_by_cut": "phases",
        "similarity": "phases",
    },
)
