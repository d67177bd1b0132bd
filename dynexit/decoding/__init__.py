"""Autoregressive decoding with a depth per token."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.decoding.recurrent import Decoded as Decoded
    from dynexit.decoding.recurrent import decode as decode

__getattr__, __dir__ = attach(__name__)
