"""Settings of the exit heads on the blocks of an encoder; loads no JAX."""

import dataclasses
from typing import Literal

from dynexit.core.settings import at_least


@dataclasses.dataclass(frozen=True)
class ExitHeads:
    """What follows every block of an encoder: a linear probe, or a small MLP.

    Example:
      >>> ExitHeads(pool="mean", hidden=64).validate()
      []
    """

    pool: Literal["cls", "mean"] = "cls"
    """what a head reads: the first token, or the mean over the others that are not padding"""
    hidden: int = 0
    """inner width of an MLP; 0 for a linear probe"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        return at_least(self, 0, "hidden")
