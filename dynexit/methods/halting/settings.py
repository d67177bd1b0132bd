"""Constructors of the methods with a learned halting probability; no JAX before `build`."""

import dataclasses
from typing import TYPE_CHECKING

from dynexit.core.settings import at_least, between, refuse_invalid

if TYPE_CHECKING:
    from dynexit.core.types import Method


@dataclasses.dataclass(frozen=True)
class Act:
    """Adaptive computation time: rows learn when to halt under a cost of iterations.

    Training: L_b = CE_b + tau (N_b + R_b), with the N_b iterations taken and the remainder R_b.

    Example:
      >>> method = Act(tau=0.01).build()

    Source: Graves 2016, arXiv 1603.08983, section 2.
    """

    tau: float = 0.01
    """time penalty of an iteration"""
    label_smoothing: float = 0.0
    """in 0..1"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        return at_least(self, 0, "tau") + between(self, 0.0, 1.0, "label_smoothing")

    def build(self) -> "Method":
        """The method; for other thresholds call `dx.methods.act`."""
        from dynexit.methods.halting.act import act

        refuse_invalid(self)
        return act(**dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class PonderNet:
    """PonderNet: halting as a latent variable with a geometric prior.

    Training: L_b = sum_n p_bn CE_bn + beta KL(prior || p_b).

    Example:
      >>> method = PonderNet(prior_rate=0.2, beta=0.01).build()

    Source: Banino et al. 2021, arXiv 2107.05407; the exit by quantile of Balagansky et al. 2022,
      PALBERT.
    """

    prior_rate: float = 0.2
    """halting probability of the geometric prior; its mean is 1 / prior_rate iterations"""
    beta: float = 0.01
    """weight of the KL divergence"""
    label_smoothing: float = 0.0
    """in 0..1"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = at_least(self, 0, "beta") + between(self, 0.0, 1.0, "label_smoothing")
        if not 0 < self.prior_rate < 1:
            found.append(f"prior_rate must lie between 0 and 1, got {self.prior_rate}")
        return found

    def build(self) -> "Method":
        """The method; for another prior or divergence call `dx.methods.pondernet`."""
        from dynexit.methods.halting.pondernet import pondernet

        refuse_invalid(self)
        return pondernet(**dataclasses.asdict(self))
