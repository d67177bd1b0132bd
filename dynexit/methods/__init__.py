"""Floor 4: published systems, each a `Method` in one thin file."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.methods.confidence_exits import confidence_exits
    from dynexit.methods.deep_thinking import deep_thinking
    from dynexit.methods.equilibrium import equilibrium
    from dynexit.methods.pondernet import pondernet
    from dynexit.methods.raptor import raptor

__all__ = ["confidence_exits", "deep_thinking", "equilibrium", "pondernet", "raptor"]
__getattr__, __dir__ = attach(
    __name__,
    {
        "confidence_exits": "confidence_exits",
        "deep_thinking": "deep_thinking",
        "equilibrium": "equilibrium",
        "pondernet": "pondernet",
        "raptor": "raptor",
    },
)
