"""The engine: every executor that runs each row of a batch to its own depth."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.engine.collectives import compile_sharded as compile_sharded
    from dynexit.engine.deferred import deferred_readout as deferred_readout
    from dynexit.engine.executors.sharded import run_sharded as run_sharded
    from dynexit.engine.executors.tiling import Tiling as Tiling
    from dynexit.engine.export import Artifact as Artifact
    from dynexit.engine.export import export as export
    from dynexit.engine.gradients.bounded import run_bounded as run_bounded
    from dynexit.engine.gradients.truncated import run_truncated as run_truncated
    from dynexit.engine.replay import replay as replay
    from dynexit.engine.replay import replay_scores as replay_scores
    from dynexit.engine.run import run_all as run_all
    from dynexit.engine.run import run_full as run_full
    from dynexit.engine.run import run_until as run_until
    from dynexit.engine.steps import every_iteration as every_iteration
    from dynexit.engine.steps import stacked_step as stacked_step
    from dynexit.engine.steps import switched_step as switched_step
    from dynexit.engine.steps import tied_step as tied_step
    from dynexit.engine.streaming.chunks import stream_chunks as stream_chunks
    from dynexit.engine.streaming.relay import Relayed as Relayed
    from dynexit.engine.streaming.relay import run_relay as run_relay
    from dynexit.engine.streaming.stream import run_stream as run_stream
    from dynexit.engine.tuning.tune import Tuned as Tuned
    from dynexit.engine.tuning.tune import tune as tune

__getattr__, __dir__ = attach(__name__)
