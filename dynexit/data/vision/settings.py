"""Constructors of the image data sets; neither JAX nor the images are loaded before `build`."""

import dataclasses
from typing import TYPE_CHECKING

from dynexit.core.settings import at_least

if TYPE_CHECKING:
    from dynexit.core.types import Dataset


@dataclasses.dataclass(frozen=True)
class Digits:
    """scikit-learn's digits: 1,797 real scans of 8x8 pixels, as 1,000, 347 and 450 examples.

    Example:
      >>> data = Digits(shift=1).build()
      >>> data.train.size, data.test.size
      (1000, 450)
    """

    shift: int = 1
    """pixels by which an image is moved at most, in training and, each way, in calibration"""

    inputs = (8, 8, 1)
    classes = tuple("0123456789")

    def validate(self) -> list[str]:
        """Values out of range, one sentence each."""
        return at_least(self, 0, "shift") or (
            [f"shift must be at most 7, got {self.shift}"] if self.shift > 7 else []
        )

    def build(self) -> "Dataset":
        """The splits; inputs float32 `[b, 8, 8, 1]`, of mean 0 and standard deviation 1.

        Calibration has every scan moved by -shift..shift pixels each way: 347 scans are few to choose thresholds on.

        Raises:
          DataDamaged: the prepared records are not what was written.
        """
        from dynexit.data.vision.digits import dataset

        return dataset(self)
