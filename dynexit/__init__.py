"""dynexit: networks that choose their own depth, with the saved compute saved in seconds.

`import dynexit as dx` loads nothing; each name below loads its module when first used. The
primitives need jax alone.
"""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit import bench as bench
    from dynexit import calibration as calibration
    from dynexit import cli as cli
    from dynexit import criteria as criteria
    from dynexit import data as data
    from dynexit import decoding as decoding
    from dynexit import engine as engine
    from dynexit import evaluation as evaluation
    from dynexit import layers as layers
    from dynexit import methods as methods
    from dynexit import models as models
    from dynexit import objectives as objectives
    from dynexit import runs as runs
    from dynexit import solvers as solvers
    from dynexit import training as training
    from dynexit import transforms as transforms
    from dynexit.core.data import Dataset as Dataset
    from dynexit.core.data import Source as Source
    from dynexit.core.data import Tokens as Tokens
    from dynexit.core.settings import Calibration as Calibration
    from dynexit.core.settings import Evaluation as Evaluation
    from dynexit.core.settings import Mesh as Mesh
    from dynexit.core.settings import Settings as Settings
    from dynexit.core.settings import Training as Training
    from dynexit.core.stacking import stack as stack
    from dynexit.core.stacking import take as take
    from dynexit.core.stacking import unstack as unstack
    from dynexit.core.step_checks import check_row_independence as check_row_independence
    from dynexit.core.types import Candidates as Candidates
    from dynexit.core.types import Criterion as Criterion
    from dynexit.core.types import Experiment as Experiment
    from dynexit.core.types import Fit as Fit
    from dynexit.core.types import Halted as Halted
    from dynexit.core.types import Memory as Memory
    from dynexit.core.types import Method as Method
    from dynexit.core.types import Model as Model
    from dynexit.core.types import Step as Step
    from dynexit.engine.executors.sharded import run_sharded as run_sharded
    from dynexit.engine.executors.tiling import Tiling as Tiling
    from dynexit.engine.export import Artifact as Artifact
    from dynexit.engine.export import export as export
    from dynexit.engine.gradients.bounded import run_bounded as run_bounded
    from dynexit.engine.replay import replay as replay
    from dynexit.engine.replay import replay_scores as replay_scores
    from dynexit.engine.run import run_all as run_all
    from dynexit.engine.run import run_full as run_full
    from dynexit.engine.run import run_until as run_until
    from dynexit.engine.steps import stacked_step as stacked_step
    from dynexit.engine.steps import switched_step as switched_step
    from dynexit.engine.steps import tied_step as tied_step
    from dynexit.engine.streaming.chunks import stream_chunks as stream_chunks
    from dynexit.engine.streaming.stream import run_stream as run_stream
    from dynexit.engine.tuning.tune import Tuned as Tuned
    from dynexit.engine.tuning.tune import tune as tune
    from dynexit.models.build import build as build

__version__ = "0.2.0"

__getattr__, __dir__ = attach(__name__)
