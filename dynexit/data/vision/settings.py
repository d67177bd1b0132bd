"""Constructors of the image data sets; neither JAX nor the images are loaded before `build`."""

import dataclasses
from typing import ClassVar

from dynexit.core.data import Dataset
from dynexit.core.settings import at_least, between


@dataclasses.dataclass(frozen=True)
class Digits:
    """scikit-learn's digits: 1,797 real scans of 8x8 pixels, as 1,000, 347 and 450 examples.

    Example:
      >>> data = Digits(shift=1).build()
      >>> data.train.size, data.calibration.size, data.test.size
      (1000, 3123, 450)
    """

    shift: int = 1
    """pixels by which an image is moved at most, in training and, each way, in calibration"""
    shift_calibration: bool = True
    """move every scan of the calibration split by each of -shift..shift pixels each way: 347 scans
    are few to choose thresholds on
    """
    sequence: bool = False
    """inputs are sequences of 64 pixels, row by row, in place of images"""

    classes: ClassVar[tuple[str, ...]] = tuple("0123456789")

    @property
    def inputs(self) -> tuple[int, ...]:
        """Shape of one example."""
        return (64, 1) if self.sequence else (8, 8, 1)

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        return between(self, 0, 7, "shift")

    def build(self) -> Dataset:
        """The splits, inputs float32 `[b, 8, 8, 1]` or `[b, 64, 1]` of mean 0 and deviation 1.

        Raises:
          ValueError: a field out of range.
          DataDamaged: the prepared records are not what was written.
        """
        from dynexit.data.vision.digits import dataset

        return dataset(self)


@dataclasses.dataclass(frozen=True)
class FashionMnist:
    """Fashion-MNIST: 70,000 real 28x28 pictures of clothes, as 55,000, 5,000 and 10,000 examples.

    `dynexit data prepare fashion_mnist` writes it to disk first.

    Example: `dx.data.FashionMnist(limit=1000).build().train.size == 1000`

    Source: Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747.
    """

    shift: int = 1
    """pixels by which an image is moved at most in training; half of them are mirrored too"""
    limit: int | None = None
    """examples of each split to use; None for all"""

    inputs: ClassVar[tuple[int, ...]] = (28, 28, 1)
    classes: ClassVar[tuple[str, ...]] = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        limit = at_least(self, 1, "limit") if self.limit is not None else []
        return between(self, 0, 27, "shift") + limit

    def build(self) -> Dataset:
        """The splits; inputs float32 `[b, 28, 28, 1]`, of mean 0 and standard deviation 1.

        Raises:
          ValueError: a field out of range.
          DataNotPrepared: the data set is not on this machine yet.
          DataDamaged: the prepared records are not what was written.
        """
        from dynexit.data.vision.fashion_mnist import dataset

        return dataset(self)
