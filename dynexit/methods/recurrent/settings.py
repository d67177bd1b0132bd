"""Constructors of the methods for networks whose block is iterated; no JAX before `build`."""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from dynexit.core.settings import at_least, between, refuse_invalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynexit.core.types import Method, Model


@dataclasses.dataclass(frozen=True)
class DeepThinking:
    """Deep thinking: trained for progress from any state, iterated for longer at inference.

    Training: L = alpha L_progressive + (1 - alpha) L_full.

    Inference: a row exits once its answer has not changed for `settled` exits.

    Example:
      >>> method = DeepThinking(most=30).build()

    Source: Bansal et al. 2022, arXiv 2202.05826.
    """

    most: int = 30
    """iterations in training, at most"""
    alpha: float = 1.0
    """weight of the progressive loss; the rest is that of the full run"""
    settled: int = 1
    """consecutive exits at which the answer must not change"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        return at_least(self, 1, "most", "settled") + between(self, 0.0, 1.0, "alpha")

    def suits(self, model: Any) -> list[str]:
        """What does not suit the model, one sentence each."""
        steps = getattr(model, "steps", self.most)
        if steps >= self.most:
            return []
        return [f"most must be at most model.steps, got {self.most} and {steps}"]

    def build(self) -> "Method":
        """The method; for other thresholds call `dx.methods.deep_thinking`."""
        from dynexit.methods.recurrent.deep_thinking import deep_thinking

        refuse_invalid(self)
        return deep_thinking(**dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class RecurrentDepth:
    """Recurrent depth: a random number of iterations in training, an exit by divergence.

    Training: r = Poisson(LogNormal(ln mean - sigma^2 / 2, sigma)) + 1 iterations, of which the last
    min(r, truncate) carry gradients.

    Example:
      >>> method = RecurrentDepth(mean=8.0).build()

    Source: Geiping et al. 2025, arXiv 2502.05171 (Huginn).
    """

    mean: float = 8.0
    """of the iterations in training, less one"""
    truncate: int = 8
    """iterations that carry gradients"""
    sigma: float = 0.5
    """of the logarithm of the rate"""
    noise: float = 1.0
    """scale of the random first state"""
    rule: Literal["divergence", "latent"] = "divergence"
    """exit by the KL divergence of consecutive answers, or by how far the state moves"""
    score: Literal["share", "exact"] = "share"
    """accuracy of a row: the fraction of its places that are right, or 1 where all are"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = at_least(self, 1, "truncate") + at_least(self, 0, "sigma", "noise")
        return found + ([] if self.mean > 0 else [f"mean must be above 0, got {self.mean}"])

    def build(self) -> "Method":
        """The method; for other thresholds or another score call `dx.methods.recurrent_depth`."""
        from dynexit.core import labels
        from dynexit.methods.recurrent.recurrent_depth import recurrent_depth

        refuse_invalid(self)
        fields = dataclasses.asdict(self)
        fields["score"] = {"share": labels.share, "exact": labels.exact}[self.score]
        return recurrent_depth(**fields)


@dataclasses.dataclass(frozen=True)
class Segments:
    """Segments: deep supervision with a detached state, and an exit by a learned halting logit.

    Example:
      >>> method = Segments(most=16).build()

    Source: Jolicoeur-Martineau 2025, arXiv 2510.04871 (TRM); Wang et al. 2025, arXiv 2506.21734
      (HRM).
    """

    most: int = 16
    """segments in training, at most"""
    explore: float = 0.1
    """fraction of rows that take a random number of segments at least, in training"""
    halting_weight: float = 0.5
    """of the halting loss"""
    loss: Literal["softmax", "stablemax"] = "softmax"
    """of the answers"""
    rule: Literal["right", "settled"] = "right"
    """exit once the halting logit says that the answer is right, or once the state has settled"""
    refill: bool = False
    """whether a new row replaces a halted one in training"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = at_least(self, 1, "most") + at_least(self, 0, "halting_weight")
        return found + between(self, 0.0, 1.0, "explore")

    def suits(self, model: Any) -> list[str]:
        """What does not suit the model, one sentence each."""
        segments = getattr(model, "segments", self.most)
        if segments >= self.most:
            return []
        return [f"most must be at most model.segments, got {self.most} and {segments}"]

    def build(self) -> "Method":
        """The method; for other thresholds call `dx.methods.segments`."""
        from dynexit.methods.recurrent.segments import segments

        refuse_invalid(self)
        return segments(**dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Ctm:
    """The continuous thought machine's loss at its best and its most certain tick.

    Example:
      >>> method = Ctm().build()

    Source: Darlow et al. 2025, arXiv 2505.05522.
    """

    def build(self) -> "Method":
        """The method; for other thresholds call `dx.methods.ctm`."""
        from dynexit.methods.recurrent.ctm import ctm

        return ctm()


@dataclasses.dataclass(frozen=True)
class Equilibrium:
    """Deep equilibrium: trained at the fixed point, exits at a tolerance of the residual.

    Example:
      >>> method = Equilibrium(tolerance=1e-3).build()

    Source: Bai et al. 2019, arXiv 1909.01377; the phantom gradient of Geng et al. 2021.
    """

    tolerance: float = 1e-3
    """of the relative residual in training"""
    tolerance_back: float | None = None
    """of the adjoint solve; None for `tolerance`"""
    unrolled: int = 0
    """iterations that are differentiated (phantom gradient); 0 for the implicit gradient"""
    damping: float = 0.0
    """of the unrolled iterations, at least 0 and below 1; needs `unrolled` of at least 2"""
    jacobian: float = 0.0
    """weight of the penalty on the Jacobian's norm"""
    label_smoothing: float = 0.0
    """in 0..1"""
    anderson: int = 0
    """states that Anderson acceleration keeps in training; 0 for the plain iteration"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = at_least(self, 0, "unrolled", "jacobian", "anderson")
        if not self.tolerance > 0:
            found.append(f"tolerance must be above 0, got {self.tolerance}")
        found += between(self, 0.0, 1.0, "label_smoothing")
        if not 0 <= self.damping < 1 or (self.damping and self.unrolled < 2):
            found.append(
                "damping must be at least 0 and below 1, and 0 with unrolled below 2, got "
                f"{self.damping} with {self.unrolled}"
            )
        if self.tolerance_back is not None:
            found += at_least(self, 0, "tolerance_back")
            if self.unrolled:
                found.append(
                    f"tolerance_back must be None with unrolled, got {self.tolerance_back} with "
                    f"{self.unrolled}"
                )
        return found

    def build(self) -> "Method":
        """The method; for another acceleration call `dx.methods.equilibrium`."""
        from dynexit.methods.recurrent.equilibrium import equilibrium
        from dynexit.solvers.anderson import anderson

        refuse_invalid(self)
        fields = dataclasses.asdict(self)
        states = fields.pop("anderson")
        return equilibrium(**fields, mixing=anderson(states) if states else None)


@dataclasses.dataclass(frozen=True)
class NeuralOde:
    """A neural ODE: an exit at the end of the integration, or earlier by a fraction of its time.

    Example:
      >>> method = NeuralOde().build()

    Source: Chen et al. 2018, arXiv 1806.07366.
    """

    early: float = 0.0
    """weight of the mean loss over all exits, in 0..1"""
    label_smoothing: float = 0.0
    """in 0..1"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        return between(self, 0.0, 1.0, "early", "label_smoothing")

    def build(self) -> "Method":
        """The method; for other thresholds call `dx.methods.neural_ode`."""
        from dynexit.methods.recurrent.neural_ode import neural_ode

        refuse_invalid(self)
        return neural_ode(**dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class Raptor:
    """Raptor: the blocks of a trained network are replaced by a few recurrent ones.

    Source: Raptor, see `dx.methods.raptor` for the deviations.
    """

    forcing: float = 0.25
    """fraction of training over which teacher forcing falls from 1 to 0"""
    joint: float = 0.5
    """fraction of training after which a rollout runs through all phases"""
    labels: float = 0.0
    """weight of the cross-entropy of the last exit"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        return between(self, 0.0, 1.0, "forcing", "joint") + at_least(self, 0, "labels")

    def build(self, teacher: "Model", params: Any, counts: "Sequence[int]") -> "Method":
        """The method.

        Args:
          teacher: the trained model.
          params: its parameters.
          counts: iterations of each recurrent block, of `dx.evaluation.phases`.
        """
        from dynexit.methods.recurrent.raptor import raptor

        refuse_invalid(self)
        return raptor(teacher, params, counts, **dataclasses.asdict(self))
