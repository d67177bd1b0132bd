"""Autoregressive decoding with a depth per token."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.decoding.drafts import EarlyExit as EarlyExit
    from dynexit.decoding.drafts import PromptLookup as PromptLookup
    from dynexit.decoding.exits import Exits as Exits
    from dynexit.decoding.export import export as export
    from dynexit.decoding.generate import Generated as Generated
    from dynexit.decoding.generate import Token as Token
    from dynexit.decoding.generate import generate as generate
    from dynexit.decoding.generate import stream as stream
    from dynexit.decoding.recurrent.decode import Decoded as Decoded
    from dynexit.decoding.recurrent.decode import decode as decode
    from dynexit.decoding.sampling import Sampling as Sampling
    from dynexit.decoding.session import Session as Session

__getattr__, __dir__ = attach(__name__)
