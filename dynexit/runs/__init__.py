"""Run folders and what the commands do with them, as a Python API."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.runs import launch as launch
    from dynexit.runs.generation.writing import Piece as Piece
    from dynexit.runs.generation.writing import Summary as Summary
    from dynexit.runs.generation.writing import Writing as Writing
    from dynexit.runs.language import LanguageModel as LanguageModel
    from dynexit.runs.language import load_language as load_language
    from dynexit.runs.sweeps.record import read_sweep as read_sweep
    from dynexit.runs.trained import Trained as Trained
    from dynexit.runs.trained import trained as trained
    from dynexit.runs.watching.state import State as State
    from dynexit.runs.watching.state import WatchedRun as WatchedRun

__getattr__, __dir__ = attach(__name__)
