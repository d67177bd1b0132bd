"""Floor 4: published systems, each a `Method` in one thin file."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.methods.act import act
    from dynexit.methods.confidence_exits import confidence_exits
    from dynexit.methods.ctm import ctm
    from dynexit.methods.deep_thinking import deep_thinking
    from dynexit.methods.equilibrium import equilibrium
    from dynexit.methods.fixed_depth import fixed_depth
    from dynexit.methods.neural_ode import neural_ode
    from dynexit.methods.pondernet import pondernet
    from dynexit.methods.raptor import raptor
    from dynexit.methods.recurrent_depth import recurrent_depth
    from dynexit.methods.segments import segments
    from dynexit.methods.stochastic_depth import stochastic_depth

__all__ = [
    "act",
    "confidence_exits",
    "ctm",
    "deep_thinking",
    "equilibrium",
    "fixed_depth",
    "neural_ode",
    "pondernet",
    "raptor",
    "recurrent_depth",
    "segments",
    "stochastic_depth",
]
__getattr__, __dir__ = attach(
    __name__,
    {
        "act": "act",
        "confidence_exits": "confidence_exits",
        "ctm": "ctm",
        "deep_thinking": "deep_thinking",
        "equilibrium": "equilibrium",
        "fixed_depth": "fixed_depth",
        "neural_ode": "neural_ode",
        "pondernet": "pondernet",
        "raptor": "raptor",
        "recurrent_depth": "recurrent_depth",
        "segments": "segments",
        "stochastic_depth": "stochastic_depth",
    },
)
