"""dynexit: networks that choose their own depth, with the saved compute saved in seconds.

`import dynexit as dx` loads nothing; each name below loads its module when first used. The primitives need jax alone.
"""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit import analysis, backbones, calibration, cli, data, decoding, exits, methods, objectives, training
    from dynexit.core.checks import check_row_independence
    from dynexit.core.stacking import stack, take, unstack
    from dynexit.core.types import Criterion, Experiment, Halted, Method, Model, Source, Step
    from dynexit.exits import criteria
    from dynexit.exits.bounded import run_bounded
    from dynexit.exits.chunks import stream_chunks
    from dynexit.exits.export import Artifact, export
    from dynexit.exits.replay import replay
    from dynexit.exits.run import run_all, run_full, run_until
    from dynexit.exits.sharded import run_sharded
    from dynexit.exits.steps import stacked_step, switched_step, tied_step
    from dynexit.exits.stream import run_stream
    from dynexit.exits.tiling import Tiling
    from dynexit.exits.tune import Tuned, tune

__version__ = "0.1.0"
_NAMES = {
    "Artifact": "exits.export",
    "Criterion": "core.types",
    "Experiment": "core.types",
    "Halted": "core.types",
    "Method": "core.types",
    "Model": "core.types",
    "Source": "core.types",
    "Step": "core.types",
    "Tiling": "exits.tiling",
    "Tuned": "exits.tune",
    "analysis": "",
    "backbones": "",
    "calibration": "",
    "cli": "",
    "check_row_independence": "core.checks",
    "criteria": "exits",
    "data": "",
    "decoding": "",
    "exits": "",
    "export": "exits.export",
    "methods": "",
    "objectives": "",
    "replay": "exits.replay",
    "run_all": "exits.run",
    "run_bounded": "exits.bounded",
    "run_full": "exits.run",
    "run_sharded": "exits.sharded",
    "run_stream": "exits.stream",
    "run_until": "exits.run",
    "stack": "core.stacking",
    "stacked_step": "exits.steps",
    "stream_chunks": "exits.chunks",
    "switched_step": "exits.steps",
    "take": "core.stacking",
    "tied_step": "exits.steps",
    "training": "",
    "tune": "exits.tune",
    "unstack": "core.stacking",
}
__all__ = [
    "Artifact",
    "Criterion",
    "Experiment",
    "Halted",
    "Method",
    "Model",
    "Source",
    "Step",
    "Tiling",
    "Tuned",
    "__version__",
    "analysis",
    "backbones",
    "calibration",
    "check_row_independence",
    "cli",
    "criteria",
    "data",
    "decoding",
    "exits",
    "export",
    "methods",
    "objectives",
    "replay",
    "run_all",
    "run_bounded",
    "run_full",
    "run_sharded",
    "run_stream",
    "run_until",
    "stack",
    "stacked_step",
    "stream_chunks",
    "switched_step",
    "take",
    "tied_step",
    "training",
    "tune",
    "unstack",
]
__getattr__, __dir__ = attach(__name__, _NAMES)
