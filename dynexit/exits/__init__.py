"""Floor 1, the engine: running a network so that each row leaves at its own depth."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.exits import criteria
    from dynexit.exits.averaging import averaged, averaged_step, averaging_state
    from dynexit.exits.bounded import run_bounded
    from dynexit.exits.chunks import stream_chunks
    from dynexit.exits.export import Artifact, export
    from dynexit.exits.fixed_point import FixedPoint, begin_fixed_point, fixed_point, fixed_point_step, implicit, phantom
    from dynexit.exits.late import read_late
    from dynexit.exits.mixing import Mixing, anderson, damped
    from dynexit.exits.most_certain import certainty, most_certain
    from dynexit.exits.newton_scan import Recurrence, affine_scan, check_elementwise, newton_scan
    from dynexit.exits.ode import Solver, begin_ode, ode_step
    from dynexit.exits.places import Places, by_place
    from dynexit.exits.relay import Relayed, run_relay
    from dynexit.exits.replay import replay
    from dynexit.exits.run import run_all, run_full, run_until
    from dynexit.exits.sharded import run_sharded
    from dynexit.exits.steps import every_iteration, stacked_step, switched_step, tied_step
    from dynexit.exits.stochastic import dropped_blocks, survival
    from dynexit.exits.stream import run_stream
    from dynexit.exits.tiling import Tiling
    from dynexit.exits.truncated import run_truncated
    from dynexit.exits.tune import Tuned, tune

__all__ = [
    "Artifact",
    "FixedPoint",
    "Mixing",
    "Places",
    "Recurrence",
    "Relayed",
    "Solver",
    "Tiling",
    "Tuned",
    "affine_scan",
    "anderson",
    "averaged",
    "averaged_step",
    "averaging_state",
    "begin_fixed_point",
    "begin_ode",
    "by_place",
    "certainty",
    "check_elementwise",
    "criteria",
    "damped",
    "dropped_blocks",
    "every_iteration",
    "export",
    "fixed_point",
    "fixed_point_step",
    "implicit",
    "most_certain",
    "newton_scan",
    "ode_step",
    "phantom",
    "read_late",
    "replay",
    "run_all",
    "run_bounded",
    "run_full",
    "run_relay",
    "run_sharded",
    "run_stream",
    "run_truncated",
    "run_until",
    "stacked_step",
    "stream_chunks",
    "survival",
    "switched_step",
    "tied_step",
    "tune",
]
__getattr__, __dir__ = attach(
    __name__,
    {
        "Artifact": "export",
        "FixedPoint": "fixed_point",
        "Mixing": "mixing",
        "Places": "places",
        "Recurrence": "newton_scan",
        "Relayed": "relay",
        "Solver": "ode",
        "Tiling": "tiling",
        "Tuned": "tune",
        "affine_scan": "newton_scan",
        "check_elementwise": "newton_scan",
        "anderson": "mixing",
        "averaged": "averaging",
        "averaged_step": "averaging",
        "averaging_state": "averaging",
        "begin_fixed_point": "fixed_point",
        "begin_ode": "ode",
        "by_place": "places",
        "certainty": "most_certain",
        "criteria": "",
        "damped": "mixing",
        "dropped_blocks": "stochastic",
        "every_iteration": "steps",
        "export": "export",
        "fixed_point": "fixed_point",
        "fixed_point_step": "fixed_point",
        "implicit": "fixed_point",
        "most_certain": "most_certain",
        "newton_scan": "newton_scan",
        "ode_step": "ode",
        "phantom": "fixed_point",
        "read_late": "late",
        "replay": "replay",
        "run_all": "run",
        "run_bounded": "bounded",
        "run_full": "run",
        "run_relay": "relay",
        "run_sharded": "sharded",
        "run_stream": "stream",
        "run_truncated": "truncated",
        "run_until": "run",
        "stacked_step": "steps",
        "stream_chunks": "chunks",
        "survival": "stochastic",
        "switched_step": "steps",
        "tied_step": "steps",
        "tune": "tune",
    },
)
