"""Constructors of the methods for untied blocks; no JAX before `build`."""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from dynexit.core.settings import at_least, between, refuse_invalid

if TYPE_CHECKING:
    from dynexit.core.types import Method


@dataclasses.dataclass(frozen=True)
class ConfidenceExits:
    """The exits of BranchyNet, SDN and MSDNet, with one calibrated temperature per exit.

    Training: L_b = sum_e w_e CE_eb + distill sum_{e<E-1} w_e T^2 KL(p_{E-1} || p_e).

    Inference: a row exits where max_c softmax(z_e / T_e)_c > t_e. The temperatures T_e are fitted
    on the calibration split.

    Example:
      >>> method = ConfidenceExits(distill=0.1).build()

    Source: Teerapittayanon et al. 2016, BranchyNet (there with entropy); Kaya et al. 2019, SDN;
      Huang et al. 2018, MSDNet (there without temperatures); the temperatures of Guo et al. 2017.
    """

    weights: Literal["uniform", "linear"] = "uniform"
    """of the exits in the loss: 1 / E each, or rising with the depth"""
    label_smoothing: float = 0.0
    """in 0..1"""
    distill: float = 0.0
    """weight of the distillation from the last exit"""
    distill_temperature: float = 1.0
    """T of the distillation"""
    shared: int = 40
    """candidates with one threshold for all exits"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = at_least(self, 0, "distill") + at_least(self, 1, "shared")
        if not self.distill_temperature > 0:
            found.append(f"distill_temperature must be above 0, got {self.distill_temperature}")
        return found + between(self, 0.0, 1.0, "label_smoothing")

    def build(self) -> "Method":
        """The method; for other weights or candidate ratios call `dx.methods.confidence_exits`."""
        from dynexit.methods.exits.confidence_exits import confidence_exits

        refuse_invalid(self)
        return confidence_exits(**dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class FixedDepth:
    """Training of the last exit alone; every row runs at full depth.

    Example:
      >>> method = FixedDepth().build()
    """

    label_smoothing: float = 0.0
    """in 0..1"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        return between(self, 0.0, 1.0, "label_smoothing")

    def build(self) -> "Method":
        """The method."""
        from dynexit.methods.exits.fixed_depth import fixed_depth

        refuse_invalid(self)
        return fixed_depth(**dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class FrozenTrunk:
    """Exit heads trained on a frozen trunk, such as a pretrained network.

    Training: the loss of `exits`, whose gradient is that of the heads alone.

    Example:
      >>> method = FrozenTrunk(ConfidenceExits(weights="linear")).build()

    Source: the second stage of DeeBERT, Xin et al. 2020, arXiv 2004.12993.
    """

    exits: ConfidenceExits = ConfidenceExits()
    """how the heads are trained, and when a row exits"""
    trunk: tuple[str, ...] = ("trunk",)
    """prefixes of the paths of frozen parameters"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        return (
            [] if self.trunk and all(self.trunk) else [f"trunk must hold names, got {self.trunk}"]
        )

    def suits(self, model: Any) -> list[str]:
        """What does not suit the model, one sentence each."""
        name = type(model).__name__
        if self.trunk != ("trunk",) or not name or hasattr(model, "exits"):
            return []
        return [f"trunk must name parameters of model, a {name}, which has no 'trunk'"]

    def build(self) -> "Method":
        """The method; to train other exits so call `dx.methods.frozen_trunk`."""
        from dynexit.methods.exits.frozen_trunk import frozen_trunk

        refuse_invalid(self)
        return frozen_trunk(self.exits.build(), self.trunk)


@dataclasses.dataclass(frozen=True)
class StochasticDepth:
    """Confidence exits trained with blocks that are dropped at random.

    Block l of N is kept with probability 1 - (l / N)(1 - last).

    Example:
      >>> method = StochasticDepth(last=0.5).build()

    Source: Huang et al. 2016, arXiv 1603.09382.
    """

    last: float = 0.5
    """probability of keeping the last block"""
    by: Literal["batch", "row"] = "batch"
    """what a block is dropped for; only blocks dropped for the whole batch are not computed"""
    exits: ConfidenceExits = ConfidenceExits()
    """how the exits are trained"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        if 0 < self.last <= 1:
            return []
        return [f"last must be above 0 and at most 1, got {self.last}"]

    def build(self) -> "Method":
        """The method; to train another method so call `dx.methods.stochastic_depth`."""
        from dynexit.methods.exits.stochastic_depth import stochastic_depth

        refuse_invalid(self)
        return stochastic_depth(self.exits.build(), self.last, self.by)
