"""Windows of packed documents."""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from dynexit.core.data import Source
from dynexit.core.labels import IGNORED
from dynexit.data.host_shapes import Int
from dynexit.data.source import Batch, batch_indices, from_leaves

Ids: TypeAlias = Int[np.ndarray, "_"]


class Packed(NamedTuple):
    """Documents one after the other, cut into windows of one length.

    Attributes:
      stream: ids of all documents, int32 `[n]`.
      starts: where each begins in the stream, int64 `[documents]`.
      length: L, of a window.
    """

    stream: Ids
    starts: Int[np.ndarray, "documents"]
    length: int

    @property
    def whole(self) -> int:
        """Number of whole windows."""
        return len(self.stream) // self.length

    def windows(self, rows: Int[np.ndarray, "b"]) -> Batch:
        """The windows `rows`, see `packed`."""
        place = rows[:, None] * self.length + np.arange(self.length)
        document = np.searchsorted(self.starts, place, side="right")
        following = np.minimum(place + 1, len(self.stream) - 1)
        same = np.searchsorted(self.starts, following, side="right") == document
        labels = np.where(same & (following > place), self.stream[following], np.int32(IGNORED))
        segments = (document - document[:, :1]).astype(np.int32)
        inputs = {"tokens": self.stream[place], "segments": segments}
        return {"inputs": inputs, "labels": labels.astype(np.int32)}

    def __call__(self, seed: int, step: int, size: int) -> Batch:
        """Batch `step` of shuffled epochs."""
        return self.rows(seed, step, size, 0, size)

    def rows(self, seed: int, step: int, size: int, first: int, last: int) -> Batch:
        """Rows first..last-1 of a batch."""
        return self.windows(batch_indices(self.whole, seed, step, size)[first:last])


def packed(
    split: str, documents: Sequence[Ids], length: int, examples: int | None = None
) -> Source:
    """A split of documents packed into windows without padding.

    A window may begin and end within a document. "segments" numbers the documents of a window from
    0: a model that attends within segments sees each document alone.

    Args:
      split: "train", "calibration" or "test".
      documents: ids, int32 `[n]` each, the last of them the end.
      length: L.
      examples: windows at most, evenly spread; None for all.

    Returns:
      A `Source` of `{"inputs": {"tokens": [b, L], "segments": [b, L]}, "labels": [b, L]}`, all
      int32. The label of a place is the next token, and -1 at the last place of a document. Without
      `examples` windows are cut when they are read, so that the stream is in memory once.

    Raises:
      ValueError: too little text for a window.

    Example:
      >>> source = packed("train", [np.array([1, 2, 9]), np.array([3, 4, 5, 9])], 7)
      >>> batch = source.batch(0, 0, 1)
      >>> batch["inputs"]["segments"][0].tolist(), batch["labels"][0].tolist()
      ([0, 0, 0, 1, 1, 1, 1], [2, 9, -1, 4, 5, 9, -1])
    """
    sizes = [len(ids) for ids in documents]
    stream = np.concatenate([np.asarray(ids, np.int32) for ids in documents])
    starts = np.cumsum([0, *sizes[:-1]], dtype=np.int64)
    found = Packed(stream, starts, length)
    if not found.whole:
        raise ValueError(
            f"`length` must be at most the {len(stream)} tokens of the {split} split, got {length}"
        )
    if examples is not None:
        kept = np.linspace(0, found.whole - 1, min(examples, found.whole)).astype(np.int64)
        return from_leaves(split, found.windows(kept))
    return Source(split, found, lambda: found.windows(np.arange(found.whole)), found.whole)
