"""Constructors of the networks with recurrent cells; no JAX is loaded before `build`."""

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from dynexit.core.data import Tokens
from dynexit.core.settings import MOST_BLOCKS, at_least, at_most
from dynexit.models.fits import (
    misfit_epsilon,
    misfit_padding,
    misfit_shape,
    misfit_tokens,
    not_above,
)

if TYPE_CHECKING:
    from dynexit.core.types import Model


@dataclasses.dataclass(frozen=True)
class Gru:
    """A weight-tied GRU that reads its input at every step and has a halting logit (PonderNet).

    Every step, the first one too, updates the cell before the answer is read. (Public code for the
    parity task reads step 1 from the zero state, where it cannot be right.)

    Example:
      >>> model = Gru(width=16, steps=10).build((8,), 2)
      >>> model.depth
      10

    Source: Banino et al. 2021, arXiv 2107.05407, parity task; Graves 2016, arXiv 1603.08983, for
    `halting`. Graves averages states and outputs; of a linear head's answers both are the same
    mean.
    """

    width: int = 64
    """hidden units D"""
    steps: int = 10
    """steps N at most"""
    halting: Literal["none", "accumulated", "basic"] = "none"
    """none: each step's own answer, for PonderNet; accumulated or basic: the answer is averaged
    over the steps as in `dx.transforms.averaged`, for adaptive computation time
    """
    epsilon: float = 0.01
    """with averaged answers, a row halts once its probabilities sum to more than 1 - epsilon"""
    halt_reads: Literal["state", "concat", "diff"] = "state"
    """what the halting logit is computed from: the state h_n, h_n beside h_{n-1} (PALBERT), or
    their difference; h_0 = 0
    """
    halt_layers: int = 0
    """tanh layers before the halting logit; 3 in PALBERT"""
    halt_detach: bool = False
    """whether the halting logit sends no gradient into the cell"""
    halt_bias: float = 0.0
    """initial halting logit; 0 is a probability of 1/2, 1 about two steps and -1 about four"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = at_least(self, 1, "width", "steps") + at_least(self, 0, "halt_layers")
        return found + misfit_epsilon(self.epsilon)

    def fits(self, inputs: tuple[int, ...], classes: int) -> list[str]:
        """What does not fit the data, one sentence each."""
        return misfit_shape(inputs, "length")

    def build(self, inputs: tuple[int, ...], classes: int) -> "Model":
        """The model.

        Args:
          inputs: `(n,)`, the length of an input vector.
          classes: C.

        Returns:
          A weight-tied `Model`: inputs `[B, n]` floating point, outputs `{"logits": [E, B, C],
          "halt_logit": [E, B]}`, with averaged answers also "accumulated" and "gate" `[E, B]`.

        Raises:
          ValueError: a field out of range, or inputs that are no vectors; the field is named.
        """
        from dynexit.models.recurrent.gru import gru_ponder

        return gru_ponder(self, inputs, classes)


@dataclasses.dataclass(frozen=True)
class Rnn:
    """Layers of a recurrent network over a sequence, with an exit at every place of every layer.

    h_t = cell(h_{t-1}, x_t) with h_0 = 0 in each layer; x of the next layer is h.

    Example:
      >>> import dynexit as dx
      >>> model = Rnn(width=8, depth=2, cell="elman").build(dx.Tokens(5), 3)
      >>> model.names
      ('block00', 'block01')

    Source: Elman 1990; Hochreiter and Schmidhuber 1997; Cho et al. 2014 (the reset gate is applied
    after the matrix, as in cuDNN).
    """

    width: int = 64
    """channels D"""
    depth: int = 1
    """layers N"""
    cell: Literal["elman", "gru", "lstm"] = "lstm"
    """elman has tanh units"""
    padding: int | None = None
    """token of padded places, which must follow the others; None for no padding"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        return at_least(self, 1, "width", "depth") + at_most(self, MOST_BLOCKS, "depth")

    def fits(self, inputs: Any, classes: int) -> list[str]:
        """What does not fit the data, one sentence each."""
        return misfit_tokens(inputs) or misfit_padding(self.padding, inputs.vocabulary)

    def build(self, inputs: Tokens, classes: int) -> "Model":
        """The model.

        Args:
          inputs: `dx.Tokens`; any length.
          classes: C, at every place.

        Returns:
          A homogeneous `Model`: inputs integers `[B, L]`, or `{"tokens": [B, L], "mask": bool
          [B, L]}`, False at padded places. Outputs logits `[E, B, L, C]` with E = N, with padding
          `{"logits", "mask": [E, B, L]}`. Each layer reads the whole sequence.

        Raises:
          ValueError: a field out of range, or inputs that are no tokens; the field is named.
        """
        from dynexit.models.recurrent.rnn import rnn

        return rnn(self, inputs, classes)


@dataclasses.dataclass(frozen=True)
class ParaGru:
    """ParaGRU blocks, whose recurrence over time is solved in parallel, with an exit after each.

    The exit head reads the last place. An image is read pixel by pixel, row by row.

    Example:
      >>> model = ParaGru(width=8, depth=2).build((16, 2), 5)
      >>> model.names
      ('block00', 'block01')

    Source: Danieli et al. 2025, ParaRNN. Deviations: no heads in the input projections, small
    initial recurrent weights and a bound on them; a stop at the residual in place of 3 corrections;
    their language models have no exits.
    """

    width: int = 64
    """channels D"""
    depth: int = 4
    """blocks N, each followed by an exit"""
    corrections: int = 8
    """of Newton's method, at most"""
    tolerance: float = 1e-5
    """residual at which the recurrence of a row counts as solved"""
    bound: float = 2.0
    """of the recurrent weights, bound tanh(w / bound): above about 3 Newton's method diverges"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = at_least(self, 1, "width", "depth", "corrections")
        found += at_most(self, MOST_BLOCKS, "depth")
        return found + not_above(0, tolerance=self.tolerance, bound=self.bound)

    def fits(self, inputs: tuple[int, ...], classes: int) -> list[str]:
        """What does not fit the data, one sentence each."""
        if found := misfit_shape(inputs):
            return found
        return [] if len(inputs) > 1 else misfit_shape(inputs, "length", "channels")

    def build(self, inputs: tuple[int, ...], classes: int) -> "Model":
        """The model.

        Args:
          inputs: `(length, channels)`, or `(height, width, channels)`.
          classes: C.

        Returns:
          A homogeneous `Model`: inputs `[B, *inputs]` floating point, outputs `{"logits":
          [E, B, C], "newton_residual": [E, B]}`. The residual is the largest of the blocks so far;
          above `tolerance`, the recurrence was not solved in `corrections`.

        Raises:
          ValueError: a field out of range, or inputs that are no sequences; the field is named.
        """
        from dynexit.models.recurrent.pararnn import para_gru

        return para_gru(self, inputs, classes)
