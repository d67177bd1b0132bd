"""Constructors of the methods for language models; no JAX before `build`."""

import dataclasses
from typing import TYPE_CHECKING, Literal

from dynexit.core.settings import at_least, refuse_invalid

if TYPE_CHECKING:
    from dynexit.core.types import Method


@dataclasses.dataclass(frozen=True)
class LayerSkip:
    """LayerSkip: layer dropout and early-exit losses of a language model with one output head.

    Training: block l of N is dropped for a row with probability S(t) D(l) p. The loss is
    L_b = sum_e w_e CE_eb over the exits that the curriculum has on.

    Example:
      >>> method = LayerSkip(dropout=0.1, rotation=4).build()

    Source: Elhoushi et al. 2024, arXiv 2404.16710.
    """

    dropout: float = 0.1
    """rate at which the last block is dropped at the end of training"""
    schedule: Literal["rising", "constant"] = "rising"
    """of the rate: rising from 0 for training from scratch, constant for a trained model"""
    curve: Literal["paper", "sum", "linear", "uniform"] = "paper"
    """weights of the exits over the depth; all but the first are torchtune's"""
    early_scale: float = 0.2
    """factor of the early exits; 0 trains the last exit alone"""
    curriculum: Literal["rotational", "gradual", "all"] = "rotational"
    """exits with a loss: every `rotation`-th, from the top down over half of training, or all"""
    rotation: int = 4
    """R of the rotational curriculum: about E / R early exits have a loss in an update"""
    rule: Literal["depth", "confidence"] = "depth"
    """exit at one depth for all rows, or once the likeliest token is likely enough at every place
    """
    shared: int = 40
    """candidates with one threshold for all exits, of the rule confidence"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = at_least(self, 0, "early_scale") + at_least(self, 1, "rotation", "shared")
        if not 0 <= self.dropout < 1:
            found.append(f"dropout must be at least 0 and below 1, got {self.dropout}")
        return found

    def build(self) -> "Method":
        """The method."""
        from dynexit.methods.language.layerskip import layerskip

        refuse_invalid(self)
        return layerskip(**dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Balcony:
    """Exits of a frozen language model, each through one trained block of its own.

    Training: L_b = mean_e mean_t [KL(p_L || p_e) + c CE_e] over the early exits. The trunk is
    frozen.

    Example:
      >>> method = Balcony().build()

    Source: Jamialahmadi et al. 2025, arXiv 2503.05005.
    """

    cross_entropy: float = 0.0
    """c, the weight of the labels' cross-entropy"""
    shared: int = 40
    """candidates with one threshold for all exits"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        return at_least(self, 0, "cross_entropy") + at_least(self, 1, "shared")

    def build(self) -> "Method":
        """The method, for `dx.models.Balcony`."""
        from dynexit.methods.language.balcony import balcony

        refuse_invalid(self)
        return balcony(**dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Calm:
    """CALM: every layer predicts, and each token exits once it is certain.

    Training: L_b = sum_i w_i CE_ib, w_i = i / sum_j j. Exits: a confidence against a threshold that
    falls over the text.

    Example:
      >>> method = Calm(measure="margin", tau=4.0).build()

    Source: Schuster et al. 2022, arXiv 2207.07061.
    """

    measure: Literal["margin", "saturation"] = "margin"
    """confidence: the margin of the two likeliest tokens, or the cosine of two exits' states"""
    tau: float = 4.0
    """rate at which the threshold falls over the text; 0 for none"""
    decay: Literal["scaled", "clipped"] = "scaled"
    """of the threshold: the released code's, or the paper's"""
    weights: Literal["linear", "uniform", "geometric"] = "linear"
    """of the exits' losses over the depth"""
    shared: int = 40
    """candidates, each with one threshold for all exits"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        return at_least(self, 0, "tau") + at_least(self, 1, "shared")

    def build(self) -> "Method":
        """The method."""
        from dynexit.methods.language.calm import calm

        refuse_invalid(self)
        return calm(**dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class SortedExits:
    """Sorted fine-tuning: every chosen depth of a language model is a model of its own.

    Training: L_b = 1 / |N| sum_{n in N} CE_nb. Exits: all rows at one depth, which is calibrated.

    Example:
      >>> method = SortedExits(depths=(4, 6)).build()

    Source: Kavehzadeh et al. 2023, arXiv 2309.08968.
    """

    depths: tuple[int, ...] = ()
    """numbers of blocks below the model's depth, rising; empty for every block"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        if list(self.depths) == sorted(set(self.depths)) and min(self.depths, default=1) >= 1:
            return []
        return [f"depths must be rising numbers of at least 1, got {self.depths}"]

    def build(self) -> "Method":
        """The method."""
        from dynexit.methods.language.sorted_exits import sorted_exits

        refuse_invalid(self)
        return sorted_exits(self.depths)
