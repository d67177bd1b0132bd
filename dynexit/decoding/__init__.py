"""Floor 3: writing token by token, each token as deep as it needs."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.decoding.recurrent import Decoded, decode

__all__ = ["Decoded", "decode"]
__getattr__, __dir__ = attach(__name__, {"Decoded": "recurrent", "decode": "recurrent"})
