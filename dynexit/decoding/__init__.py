"""Autoregressive decoding with a depth per token."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.decoding.drafts import EarlyExit as EarlyExit
    from dynexit.decoding.drafts import PromptLookup as PromptLookup
    from dynexit.decoding.exits.settings import Exits as Exits
    from dynexit.decoding.exits.work import Work as Work
    from dynexit.decoding.export import export as export
    from dynexit.decoding.generate import Generated as Generated
    from dynexit.decoding.generate import Token as Token
    from dynexit.decoding.generate import generate as generate
    from dynexit.decoding.generate import stream as stream
    from dynexit.decoding.recurrent.decode import Decoded as Decoded
    from dynexit.decoding.recurrent.decode import decode as decode
    from dynexit.decoding.sampling import Sampling as Sampling
    from dynexit.decoding.session import Session as Session
    from dynexit.decoding.tuning import Choice as Choice
    from dynexit.decoding.tuning import Measured as Measured
    from dynexit.decoding.tuning import tune as tune

__getattr__, __dir__ = attach(__name__)
