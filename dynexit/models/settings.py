"""Constructor of the residual MLP; loads no JAX before `build`."""

import dataclasses
from typing import TYPE_CHECKING

from dynexit.core.settings import MOST_BLOCKS, at_least, at_most
from dynexit.models.fits import misfit_shape

if TYPE_CHECKING:
    from dynexit.core.types import Model


@dataclasses.dataclass(frozen=True)
class Mlp:
    """A residual MLP with an exit head after every block.

    Example:
      >>> model = Mlp(width=16, depth=3).build((8, 8, 1), 10)
      >>> model.names
      ('block00', 'block01', 'block02')

    Source: He et al. 2016, arXiv 1603.05027, for the identity shortcut; ours.
    """

    width: int = 128
    """channels D"""
    depth: int = 4
    """blocks N, each followed by an exit"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        return at_least(self, 1, "width", "depth") + at_most(self, MOST_BLOCKS, "depth")

    def fits(self, inputs: tuple[int, ...], classes: int) -> list[str]:
        """What does not fit the data, one sentence each."""
        return misfit_shape(inputs)

    def build(self, inputs: tuple[int, ...], classes: int) -> "Model":
        """The model.

        Args:
          inputs: shape of one example, flattened by the model.
          classes: C.

        Returns:
          A homogeneous `Model`: inputs `[B, *inputs]` floating point, outputs logits `[E, B, C]`
          with E = N.

        Raises:
          ValueError: a field out of range, or data that do not fit; the field is named.
        """
        from dynexit.models.mlp import mlp

        return mlp(self, inputs, classes)
