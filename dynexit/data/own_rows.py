"""Random numbers of some rows of a batch, equal to those that the whole batch has; loads no JAX.

A generated task draws arrays `[size, ...]`, one after the other, from one stream. How many words of
the stream an array takes is known only once it is drawn, because bounded integers are drawn again
where they are out of range. One of several hosts therefore draws the numbers of all rows and keeps
its own. All that follows from the numbers, such as the walls of a maze, it computes for its own
rows alone.
"""

from typing import Any

import numpy as np


class OwnRows:
    """The methods of `numpy.random.Generator` that draws by rows may call, for some rows.

    Args:
      random: the generator; consumed as by the whole batch.
      size: rows of the whole batch.
      first, last: the rows wanted are first..last-1.

    Raises:
      TypeError: from a method, an array whose first axis is not that of the rows, or bounds that
        are arrays: those of other rows are not known.

    Example:
      >>> whole = np.random.default_rng(0).integers(0, 10, size=(6, 2))
      >>> own = OwnRows(np.random.default_rng(0), 6, 2, 4).integers(0, 10, size=(2, 2))
      >>> np.array_equal(own, whole[2:4])
      True
    """

    def __init__(self, random: np.random.Generator, size: int, first: int, last: int) -> None:
        self._random, self._size, self._own = random, size, slice(first, last)

    def integers(self, low: int, high: int, size: Any = None, dtype: Any = np.int64) -> Any:
        """As that of numpy; without a size one number, for all rows."""
        if np.ndim(low) or np.ndim(high):
            raise TypeError("`low` and `high` must be numbers in a draw by rows, got arrays")
        if size is None:
            return self._random.integers(low, high, dtype=dtype)
        return self._random.integers(low, high, self._whole(size), dtype)[self._own]

    def random(self, size: Any, dtype: Any = np.float64) -> Any:
        """As that of numpy."""
        return self._random.random(self._whole(size), dtype)[self._own]

    def permuted(self, x: Any, axis: int) -> Any:
        """As that of numpy, for `[rows, n]` and axis 1."""
        if np.ndim(x) != 2 or axis != 1:
            raise TypeError(f"`x` must be [rows, n] and `axis` 1, got {np.shape(x)} and {axis}")
        size, places = self._whole(np.shape(x))
        order = self._random.permuted(np.tile(np.arange(places), (size, 1)), axis=1)
        return np.take_along_axis(x, order[self._own], axis=1)

    def _whole(self, size: Any) -> tuple[int, ...]:
        """The shape for all rows."""
        shape, own = np.atleast_1d(size).tolist(), self._own.stop - self._own.start
        if not shape or shape[0] != own:
            raise TypeError(f"`size` must begin with the {own} rows, got {size}")
        return (self._size, *shape[1:])
