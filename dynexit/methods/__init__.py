"""Floor 4: published systems, each a `Method` in one thin file."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.methods.confidence_exits import confidence_exits
    from dynexit.methods.deep_thinking import deep_thinking
    from dynexit.methods.pondernet import pondernet
    from dynexit.methods.segments import segments

__all__ = ["confidence_exits", "deep_thinking", "pondernet", "segments"]
__getattr__, __dir__ = attach(
    __name__,
    {
        "confidence_exits": "confidence_exits",
        "deep_thinking": "deep_thinking",
        "pondernet": "pondernet",
        "segments": "segments",
    },
)
