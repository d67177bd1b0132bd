"""Constructors of the networks that refine an answer; no JAX is loaded before `build`."""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from dynexit.core.data import Tokens
from dynexit.core.settings import at_least
from dynexit.models.fits import misfit_heads, misfit_padding, misfit_shape, misfit_tokens

if TYPE_CHECKING:
    from dynexit.core.types import Model


@dataclasses.dataclass(frozen=True)
class DeepThinking:
    """A weight-tied convolutional network that answers at every place and may run for longer.

    h_0 = relu(conv(x)); h_{i+1} = blocks(conv([h_i, x])); the same head reads every iteration.

    Example:
      >>> model = DeepThinking(width=8, steps=6, every=2).build((16, 1), 2)
      >>> model.depth, model.names[0]
      (6, 'step000')

    Source: Bansal et al. 2022, arXiv 2202.05826, "DT-recall", with its head (images: width / 4,
    which is 32 there, and 8; strings: width, width / 2) and activations. Deviations: the norm is
    ours, and so are the widths, chosen for two CPU cores.
    """

    width: int = 32
    """channels D of the state"""
    steps: int = 100
    """iterations N at most; may be more than in training"""
    recall: bool = True
    """whether every iteration reads the input"""
    blocks: int = 2
    """residual blocks of two convolutions in an iteration"""
    norm: bool = True
    """whether an iteration ends with a norm over the channels of each place, which keeps long runs
    bounded
    """
    every: int = 1
    """iterations from one exit to the next, a divisor of `steps`; the head costs about a third of
    an iteration on strings, a tenth on images
    """
    walls: bool = False
    """whether places whose input is 0 in all channels hold no state and pass nothing on. The edge
    of an image is then a wall like any other; otherwise a place of a small image can infer its
    distance from the edge, and one of a large image cannot
    """

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = at_least(self, 1, "width", "steps", "blocks", "every")
        if not found and self.steps % self.every:
            found = [f"steps must be a multiple of every, got {self.steps} and {self.every}"]
        return found

    def fits(self, inputs: Any, classes: int) -> list[str]:
        """What does not fit the data, one sentence each."""
        if hasattr(inputs, "vocabulary"):
            return misfit_tokens(inputs)
        if isinstance(inputs, tuple) and len(inputs) == 2:
            return misfit_shape(inputs, "length", "channels")
        return misfit_shape(inputs, "height", "width", "channels")

    def build(self, inputs: tuple[int, ...] | Tokens, classes: int) -> "Model":
        """The model.

        Args:
          inputs: `(length, channels)`, `(height, width, channels)` or `dx.Tokens`, which are
            one-hot encoded; the number of places is not fixed.
          classes: C, at every place.

        Returns:
          A weight-tied `Model`: inputs `[B, L, channels]` or `[B, H, W, channels]` floating point,
          or integers `[B, L]`; outputs logits `[E, B, L, C]` or `[E, B, H, W, C]` with
          E = steps / every. State: "input", which no step changes, and "h".

        Raises:
          ValueError: a field out of range, or inputs of another kind; the field is named.
        """
        from dynexit.models.recurrent.deep_thinking import deep_thinking

        return deep_thinking(self, inputs, classes)


@dataclasses.dataclass(frozen=True)
class Recursive:
    """A recursive reasoner: a tiny net refines a latent and an answer, segment by segment.

    A step is one segment of T cycles. A cycle is z = N(z + y + e), n times, then y = N'(y + z).
    T - 1 cycles run without gradients, the last with the gradient through all n + 1 calls, and none
    reaches the segment before. TRM: `nets=1` (N' = N), `gradient="cycle"`. HRM: `nets=2, layers=4,
    inner=2, cycles=2, gradient="last"`.

    Example:
      >>> import dynexit as dx
      >>> model = Recursive(width=8, segments=3).build(dx.Tokens(5, 16), 4)
      >>> model.names
      ('segment000', 'segment001', 'segment002')

    Source: Jolicoeur-Martineau 2025, arXiv 2510.04871 (TRM); Wang et al. 2025, arXiv 2506.21734
    (HRM). Deviations: learned positions in place of RoPE; no puzzle embeddings, so the halting head
    reads the mean of y over the places where theirs reads a place of its own; the halting logit
    alone, without the one to continue; hidden widths are multiples of 8, not 256.
    """

    width: int = 32
    """features D of a place"""
    segments: int = 16
    """at most; may be more than in training"""
    inner: int = 6
    """latent updates n in a cycle"""
    cycles: int = 3
    """cycles T in a segment"""
    layers: int = 2
    """of a net"""
    mixing: Literal["mlp", "attention"] = "mlp"
    """mlp: a SwiGLU over the places, TRM's best on Sudoku; attention: with learned positions"""
    heads: int = 4
    """of attention"""
    nets: Literal[1, 2] = 1
    """1 for one net that updates both, 2 for one each"""
    gradient: Literal["cycle", "last"] = "cycle"
    """cycle: through the last cycle; last: through its last latent update and answer (HRM)"""
    padding: int | None = None
    """token of padded places, which other places do not read; None for no padding"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        names = "width", "segments", "inner", "cycles", "layers", "heads"
        if (found := at_least(self, 1, *names)) or self.mixing == "mlp":
            return found
        return misfit_heads(self.width, self.heads)

    def fits(self, inputs: Any, classes: int) -> list[str]:
        """What does not fit the data, one sentence each."""
        found = misfit_tokens(inputs, fixed_length=True)
        return found or misfit_padding(self.padding, inputs.vocabulary)

    def build(self, inputs: Tokens, classes: int) -> "Model":
        """The model.

        Args:
          inputs: `dx.Tokens` with a length L.
          classes: C, at every place.

        Returns:
          A weight-tied `Model`: inputs integers `[B, L]`, or `{"tokens": [B, L], "mask": bool
          [B, L]}`, False at padded places; outputs `{"logits": [E, B, L, C], "halt_logit": [E, B],
          "change": [E, B]}`, the last ||z - z'|| / ||z|| over the segment, and with padding "mask"
          `[E, B, L]`. State: "input" (e), "y", "z", `[b, L, D]`, and "change". The first y and z
          are drawn with the parameters (`params["start"]`) and never trained. The halting logit
          starts at -5 for every row.

        Raises:
          ValueError: a field out of range, or inputs that are no tokens; the field is named.
        """
        from dynexit.models.recurrent.recursive import recursive

        return recursive(self, inputs, classes)


@dataclasses.dataclass(frozen=True)
class Ctm:
    """A continuous thought machine: a step is one tick of neurons that read their own history.

    S_a = sync(z, action pairs); o = attention(query(S_a), keys, values); a = norm(glu(W [o, z]));
    every neuron d computes z_d from the last M of its own a_d; S_o = sync(z, output pairs);
    logits = V S_o. For a pair (i, j)

      alpha = r alpha + z_i z_j,   beta = r beta + 1,   S = alpha / sqrt(beta),
      r = exp(-clip(decay_ij, 0, 15)),

    so that with r = 1, the initial value, S is the inner product of the two neurons' histories
    divided by the square root of their length.

    Example:
      >>> model = Ctm(width=16, ticks=3, answers="each").build((6, 1), 2)
      >>> model.names
      ('tick000', 'tick001', 'tick002')

    Source: Darlow et al. 2025, arXiv 2505.05522, with the layers and initial values of the released
    code: the first z counts in both synchronisations, so the query of tick t reads z_1..z_t and the
    answer z_1..z_{t+1}. Deviations: synapses of one layer (no U-Net); adjacent matrices are merged
    (query, keys and values are projected once, keys and values before the first tick; attention has
    no output projection); no dropout; learned positions; no learned temperature in the neurons'
    models, which their weights contain; decays outside 0..15 are read as the nearer end, where the
    code moves the parameters back (gradients are reverse mode only).
    """

    width: int = 96
    """neurons D"""
    ticks: int = 16
    """at most; may be more than in training"""
    answers: int | Literal["each"] | None = None
    """places P at which a row has an answer, which need not be those of the input; each: those of
    the input; None for one answer a row
    """
    memory: int = 8
    """ticks M of its own history that a neuron reads"""
    hidden: int = 4
    """units of each neuron's own model"""
    features: int = 32
    """of keys, values and query, over all heads"""
    heads: int = 2
    """of attention; divides `features`"""
    action: int = 32
    """pairs that the query is read from; with first_last, neurons, all pairs of which are taken"""
    out: int = 32
    """pairs that the answer is read from; with first_last, neurons, all pairs of which are taken"""
    pairing: Literal["random", "first_last"] = "random"
    """random: both neurons of a pair are drawn from all; first_last: the last neurons for the query
    and the first ones for the answer
    """
    self_pairs: int = 0
    """random pairs, of either kind, that are a neuron with itself"""
    seed: int = 0
    """of the random pairs, which are part of the model and not of its parameters"""
    best_so_far: bool = False
    """answer at each tick with the most certain answer so far (`dx.transforms.best_so_far`)"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        names = ["width", "ticks", "memory", "hidden", "features", "heads", "action", "out"]
        names += ["answers"] if isinstance(self.answers, int) else []
        if found := at_least(self, 1, *names) + at_least(self, 0, "self_pairs"):
            return found
        if self.features % self.heads:
            found.append(
                f"features must be a multiple of heads, got {self.features} and {self.heads}"
            )
        most = min(self.action, self.out) if self.pairing == "random" else 0
        if self.self_pairs > most:
            found.append(
                f"self_pairs must lie in 0..{most} with {self.pairing} pairs, got {self.self_pairs}"
            )
        if self.pairing == "first_last" and max(self.action, self.out) > self.width:
            found.append(
                f"action and out must be at most width, got {self.action}, {self.out} and "
                f"{self.width}"
            )
        return found

    def fits(self, inputs: tuple[int, ...], classes: int) -> list[str]:
        """What does not fit the data, one sentence each."""
        return misfit_shape(inputs, "length", "channels")

    def build(self, inputs: tuple[int, ...], classes: int) -> "Model":
        """The model.

        Args:
          inputs: `(length, channels)`.
          classes: C.

        Returns:
          A weight-tied `Model`: inputs `[B, L, channels]` floating point, outputs logits
          `[E, B, C]`, or `[E, B, P, C]` with `answers`; with `best_so_far` a dict of "logits" and
          "current". State: "keys" and "values" `[b, L, heads, features / heads]`, which no tick
          changes; "z" `[b, D]`; "history" `[b, D, M]`; and float32 `[b, pairs]` "action_alpha",
          "action_beta", "out_alpha", "out_beta". The first z and history are parameters.

        Raises:
          ValueError: a field out of range, or inputs of another kind; the field is named.
        """
        from dynexit.models.recurrent.ctm import ctm

        return ctm(self, inputs, classes)
