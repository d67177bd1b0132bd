"""Constructors of the image classifiers; no JAX is loaded before `build`."""

import dataclasses
from typing import TYPE_CHECKING

from dynexit.core.settings import MOST_BLOCKS, at_least, at_most
from dynexit.models.fits import misfit_heads, misfit_shape, positive

if TYPE_CHECKING:
    from dynexit.core.types import Model

IMAGE = ("height", "width", "channels")


def misfit_patches(inputs: tuple[int, ...], patch: int, stride: int | None) -> list[str]:
    """A sentence where patches do not end at the edges of the image.

    Example:
      >>> misfit_patches((8, 8, 1), 3, None)
      ['patch and stride must cover an image of 8 x 8 pixels to its edges, got 3 and 3']
    """
    if found := misfit_shape(inputs, *IMAGE):
        return found
    stride = stride or patch
    sides = inputs[:2]
    if min(sides) >= patch >= stride and not any((side - patch) % stride for side in sides):
        return []
    size = f"{sides[0]} x {sides[1]}"
    return [
        f"patch and stride must cover an image of {size} pixels to its edges, "
        f"got {patch} and {stride}"
    ]


@dataclasses.dataclass(frozen=True)
class Vit:
    """A vision transformer with an exit head after every block.

    Example:
      >>> model = Vit(patch=4, width=8, depth=2, heads=2).build((8, 8, 1), 10)
      >>> model.names
      ('block00', 'block01')

    Source: Dosovitskiy et al. 2021, arXiv 2010.11929, with pre-norm and mean pooling; overlapping
    patches are those of T2T-ViT, Yuan et al. 2021.
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
        stride = () if self.stride is None else ("stride",)
        found = at_least(self, 1, "patch", "width", "depth", "heads", *stride)
        found += at_most(self, MOST_BLOCKS, "depth")
        return found or misfit_heads(self.width, self.heads)

    def fits(self, inputs: tuple[int, ...], classes: int) -> list[str]:
        """What does not fit the images, one sentence each."""
        return misfit_patches(inputs, self.patch, self.stride)

    def build(self, inputs: tuple[int, ...], classes: int) -> "Model":
        """The model.

        Args:
          inputs: height, width and channels of an image.
          classes: C.

        Returns:
          A homogeneous `Model`: inputs `[B, height, width, channels]` floating point, outputs
          logits `[E, B, C]` with E = N; the compute type is that of the inputs.

        Raises:
          ValueError: a field out of range, or patches that do not cover the image; the field is
            named.
        """
        from dynexit.models.vision.vit import vit

        return vit(self, inputs, classes)


@dataclasses.dataclass(frozen=True)
class Resnet:
    """A residual network with an exit head after every block: a stem of stride 2, then stages.

    Each stage after the first halves the resolution. Convolutional layers: 1 + 2 x blocks, and 1
    linear layer in each exit head.

    Example:
      >>> model = Resnet(channels=(8, 16), blocks=(2, 3)).build((28, 28, 1), 10)
      >>> model.depth
      (2, 1, 2)

    Source: He et al. 2016, arXiv 1603.05027, with the group normalisation of Wu and He 2018, arXiv
    1803.08494, in place of batch normalisation, whose statistics would couple the rows of a batch.
    """

    channels: tuple[int, ...] = (32, 64)
    """of each stage; below 8 or a multiple of 8"""
    blocks: tuple[int, ...] = (2, 3)
    """of each stage, each followed by an exit"""

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        found = [
            f"{name} must hold integers of at least 1, got {values}"
            for name, values in (("channels", self.channels), ("blocks", self.blocks))
            if not values or not all(map(positive, values))
        ]
        if found:
            return found
        if len(self.channels) != len(self.blocks):
            return [
                "channels and blocks must have as many stages, "
                f"got {len(self.channels)} and {len(self.blocks)}"
            ]
        if any(c > 8 and c % 8 for c in self.channels):
            return [f"channels must be below 8 or multiples of 8, got {self.channels}"]
        return []

    def fits(self, inputs: tuple[int, ...], classes: int) -> list[str]:
        """What does not fit the images, one sentence each."""
        return misfit_shape(inputs, *IMAGE)

    def build(self, inputs: tuple[int, ...], classes: int) -> "Model":
        """The model.

        Args:
          inputs: height, width and channels of an image.
          classes: C.

        Returns:
          A staged `Model`: inputs `[B, height, width, channels]` floating point, outputs logits
          `[E, B, C]` with E the number of blocks; the compute type is that of the inputs. A block
          that halves the resolution is an engine stage of its own, of depth 1, since it changes
          the shape of the state.

        Raises:
          ValueError: a field out of range, or inputs that are no images; the field is named.
        """
        from dynexit.models.vision.resnet import resnet

        return resnet(self, inputs, classes)
