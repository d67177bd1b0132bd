"""Constructors of the weight-tied transformers; no JAX is loaded before `build`."""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from dynexit.core.data import Tokens
from dynexit.core.settings import at_least
from dynexit.models.fits import misfit_epsilon, misfit_heads, misfit_padding, misfit_tokens

if TYPE_CHECKING:
    from dynexit.core.types import Model


@dataclasses.dataclass(frozen=True)
class UniversalTransformer:
    """A weight-tied transformer encoder that answers at every place, with halting or without.

    h_0 = embedding; x = h_{t-1} + P_t, p_t = sigmoid(w x + b), a = LN(x + MHSA(x)),
    h_t = LN(a + W2 relu(W1 a)), where P_t are sinusoids of place and step. The head reads the mean
    of the h_t weighted by p_t (`dx.transforms.averaged_step`).

    Example:
      >>> import dynexit as dx
      >>> model = UniversalTransformer(width=8, heads=2, steps=3).build(dx.Tokens(11), 10)
      >>> model.names
      ('step00', 'step01', 'step02')

    Source: Dehghani et al. 2019, arXiv 1807.03819, encoder. Deviations: no dropout; a place that
    has halted is still transformed and attended to while its row runs, with weight 0, as in the
    released code (the paper copies its state). For strings longer than in training, shift the
    positions at random in training: an experiment's `augment` may turn tokens into tokens and
    positions.
    """

    width: int = 64
    """channels D, even and a multiple of `heads`"""
    heads: int = 4
    """attention heads"""
    steps: int = 6
    """steps N at most"""
    hidden: int | None = None
    """width of the transition; None for 4 D"""
    halting: Literal["accumulated", "basic", "none"] = "accumulated"
    """accumulated is ACT, basic the update of the released code, and none gives each step's own
    answer, for `dx.methods.pondernet` (with per example)
    """
    per: Literal["position", "example"] = "position"
    """position: each place halts on its own and a row exits once all have halted; example: a row
    halts by the mean of its state over the places
    """
    epsilon: float = 0.01
    """a place halts once its probabilities sum to more than 1 - epsilon"""
    halt_bias: float = 1.0
    """initial halting logit; 1 is p = 0.73 and so two steps, -1 is p = 0.27 and four"""
    post_norm: bool = True
    """norms after the sums as in the paper; else before the branches as in the released code, and
    one more before the logits
    """
    padding: int | None = None
    """token of padded places, which no place attends to and which do not delay their row; None for
    no padding
    """

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        hidden = () if self.hidden is None else ("hidden",)
        if found := at_least(self, 1, "width", "heads", "steps", *hidden):
            return found
        if self.width % 2:
            found.append(f"width must be even, got {self.width}")
        return found + misfit_heads(self.width, self.heads) + misfit_epsilon(self.epsilon)

    def fits(self, inputs: Any, classes: int) -> list[str]:
        """What does not fit the data, one sentence each."""
        return misfit_tokens(inputs) or misfit_padding(self.padding, inputs.vocabulary)

    def build(self, inputs: Tokens, classes: int) -> "Model":
        """The model.

        Args:
          inputs: `dx.Tokens`; any length.
          classes: C, at every place.

        Returns:
          A weight-tied `Model`. Inputs: tokens, integers `[B, L]`, or one-hot `[B, L, V]` floating
          point, whose type is then the compute type (of tokens it is that of the embedding); or a
          dict of "tokens", either of both, and optionally "positions", integers `[B, L]`, and
          "mask", bool `[B, L]`, False at padded places. Outputs `{"logits": [N, B, L, C],
          "halt_logit", "accumulated": [N, B, L] or [N, B], "gate": [N, B]}`, the last two without
          `halting="none"`, and with padding "mask" `[N, B, L]`.

        Raises:
          ValueError: a field out of range, or inputs that are no tokens; the field is named.
        """
        from dynexit.models.recurrent.universal_transformer import universal_transformer

        return universal_transformer(self, inputs, classes)


@dataclasses.dataclass(frozen=True)
class RecurrentDepth:
    """A decoder whose middle is iterated: any number of iterations with the weights of one.

    e = prelude(gamma Emb(x)); s_0 = 0; s_{i+1} = core(A [s_i; e]); logits = Emb n(coda(n(s))),
    with gamma = sqrt(D) and one norm n.

    Example:
      >>> import dynexit as dx
      >>> model = RecurrentDepth(width=16, heads=2, steps=4).build(dx.Tokens(50), 50)
      >>> model.depth
      4

    Source: Geiping et al. 2025, arXiv 2502.05171, and its released code: sandwich norm, biases on
    queries and keys alone, tied embedding, weights N(0, 2 / (5 D)) and output projections smaller
    by sqrt(2 l_eff). Deviation: s_0 = 0 at inference, so that answers are repeatable, where the
    release draws it or begins with the state of the previous token.
    """

    width: int = 64
    """channels D, a multiple of 2 x `heads`"""
    heads: int = 4
    """attention heads"""
    steps: int = 16
    """iterations N of the core, at most"""
    prelude: int = 1
    """blocks before the core"""
    core: int = 1
    """blocks that are iterated"""
    coda: int = 1
    """blocks after the core"""
    mean_steps: int = 8
    """iterations expected in training; scales the initial output projections alone"""
    padding: int | None = None
    """token of padded places, which no place attends to; None for no padding"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        names = "width", "heads", "steps", "prelude", "core", "coda", "mean_steps"
        return at_least(self, 1, *names) or misfit_heads(self.width, self.heads, 2)

    def fits(self, inputs: Any, classes: int) -> list[str]:
        """What does not fit the data, one sentence each."""
        found = misfit_tokens(inputs) or misfit_padding(self.padding, inputs.vocabulary)
        if not found and classes > inputs.vocabulary:
            found = [f"classes must be among the {inputs.vocabulary} tokens, got {classes}"]
        return found

    def build(self, inputs: Tokens, classes: int) -> "Model":
        """The model.

        Args:
          inputs: `dx.Tokens`; any length.
          classes: at most V: classes are tokens, and the logits are of all V tokens.

        Returns:
          A weight-tied `Model`. Inputs: integers `[B, L]`, or a dict of "tokens" and optionally
          "h" `[B, L, D]`, the state to begin with, and "mask", bool `[B, L]`, False at padded
          places. Outputs `{"logits": [E, B, L, V], "residual": [E, B, L]}`, logits in the type of
          the parameters, the residual ||s_i - s_{i-1}|| / ||s_i||; with padding also "mask"
          `[E, B, L]`, and the residual is 0 at padded places. State: "input" (e), which no step
          changes, "h" (s) and "change", the residual. Training may start s elsewhere
          (`dx.methods.recurrent_depth`).

        Raises:
          ValueError: a field out of range, or inputs that are no tokens; the field is named.
        """
        from dynexit.models.recurrent.recurrent_depth import recurrent_depth

        return recurrent_depth(self, inputs, classes)
