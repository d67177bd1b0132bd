"""Run folders and what the commands do with them, as a Python API."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.runs import launch as launch
    from dynexit.runs.trained import Trained as Trained
    from dynexit.runs.trained import trained as trained

__getattr__, __dir__ = attach(__name__)
