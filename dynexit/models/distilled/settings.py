"""Constructors of the networks distilled from others; no JAX is loaded before `build`."""

import dataclasses
from typing import TYPE_CHECKING, Any

from dynexit.core.settings import at_least
from dynexit.models.fits import misfit_heads, positive
from dynexit.models.vision.settings import misfit_patches

if TYPE_CHECKING:
    from dynexit.core.types import Model


@dataclasses.dataclass(frozen=True)
class BlockRecurrent:
    """A vision transformer of k blocks in place of N: block j is applied counts[j] times (Raptor).

    A block reads its layer's index t = 1..N: (s1, s2, s3) = 1 + W2 silu(W1 t);
    x = x + s1 attention(norm(x)); x = x + s2 mlp(norm(x)); x = s3 x. Every layer has an exit head.

    Example:
      >>> model = BlockRecurrent((3, 2), patch=4, width=8, heads=2).build((8, 8, 1), 10)
      >>> model.depth
      5

    Source: Raptor (the block-recurrent hypothesis). Deviations: the MLP is that of `Vit` and not
    SwiGLU, no LayerScale, no registers; an exit after every layer.
    """

    counts: tuple[int, ...] = (2, 2)
    """layers of each phase, which share a block; N is their sum (`dx.evaluation.phases`)"""
    patch: int = 4
    """side of a patch in pixels"""
    stride: int | None = None
    """pixels from one patch to the next; None for `patch`"""
    width: int = 128
    """channels D, a multiple of `heads`"""
    heads: int = 4
    """attention heads"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        stride = () if self.stride is None else ("stride",)
        found = at_least(self, 1, "patch", "width", "heads", *stride)
        if not self.counts or not all(map(positive, self.counts)):
            found.append(f"counts must hold integers of at least 1, got {self.counts}")
        return found or misfit_heads(self.width, self.heads)

    def fits(self, inputs: tuple[int, ...], classes: int) -> list[str]:
        """What does not fit the images, one sentence each."""
        return misfit_patches(inputs, self.patch, self.stride)

    def build(self, inputs: tuple[int, ...], classes: int, *, teacher: Any = None) -> "Model":
        """The model.

        Args:
          inputs: height, width and channels of an image.
          classes: C.
          teacher: parameters of a `Vit` of N blocks and the same sizes, whose embedding and exit
            heads `init` copies; None to draw them.

        Returns:
          A `Model` with the states of `Vit`: outputs `{"logits": [E, B, C], "residual": [E, B]}`
          with E = N, where the residual is the relative change that the layer made. Parameters:
          "embed", "blocks" `[k, ...]`, "heads" `[N, ...]`.

        Raises:
          ValueError: a field out of range, patches that do not cover the image, or a teacher of
            another depth; the field is named.
        """
        from dynexit.models.distilled.block_recurrent import block_recurrent

        return block_recurrent(self, inputs, classes, teacher)
