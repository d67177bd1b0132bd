"""Constructors of the image classifiers; no JAX is loaded before `build`."""

import dataclasses
from typing import TYPE_CHECKING

from dynexit.core.settings import at_least

if TYPE_CHECKING:
    from dynexit.core.types import Model


@dataclasses.dataclass(frozen=True)
class Vit:
    """A vision transformer whose every block has an exit head of its own.

    Example:
      >>> model = Vit(patch=4, width=8, depth=2, heads=2).build((8, 8, 1), 10)
      >>> model.names
      ('block00', 'block01')

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929, with pre-norm and mean pooling; overlapping patches are those
    of T2T-ViT, Yuan et al. 2021.
    """

    patch: int = 4
    """side of a patch in pixels"""
    stride: int | None = None
    """pixels from one patch to the next; None for `patch`. A smaller stride makes more tokens"""
    width: int = 128
    """channels D, a multiple of `heads`"""
    depth: int = 4
    """blocks N, each followed by an exit"""
    heads: int = 4
    """attention heads"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        names = (
            "patch",
            "width",
            "depth",
            "heads",
            *(["stride"] if self.stride is not None else []),
        )
        found = at_least(self, 1, *names)
        if not found and self.width % self.heads:
            found.append(f"width must be a multiple of heads, got {self.width} and {self.heads}")
        return found

    def fits(self, inputs: tuple[int, ...], classes: int) -> list[str]:
        """What does not fit the images, one sentence each."""
        stride, sides = self.stride or self.patch, inputs[:2]
        if (
            min(sides) < self.patch
            or stride > self.patch
            or any((s - self.patch) % stride for s in sides)
        ):
            size = " x ".join(map(str, sides))
            return [
                f"patch and stride must cover an image of {size} pixels to its edges, got {self.patch} and {stride}"
            ]
        return []

    def build(self, inputs: tuple[int, ...], classes: int) -> "Model":
        """The model.

        Args:
          inputs: height, width and channels of an image.
          classes: C.

        Returns:
          A homogeneous `Model`: inputs `[B, height, width, channels]` floating point, outputs logits `[E, B, C]`
          with E = N; the compute type is that of the inputs.

        Raises:
          ValueError: a field out of range, or patches that do not cover the image; the field is named.
        """
        from dynexit.models.vision.vit import vit

        return vit(self, inputs, classes)
