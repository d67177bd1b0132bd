"""Checks of prompts and of what ends a row, on the host."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynexit.core.checks import positive_integer
from dynexit.core.shapes import HostArray, Int


def listed(prompts: Any, mask: Any = None) -> list[Int[HostArray, "_"]]:
    """Prompts as a list of token ids without padding.

    Args:
      prompts: integers `[M, P]`, or one sequence of integers a prompt.
      mask: bool `[M, P]`, True at tokens, False on the left or on the right of them; or None.

    Raises:
      TypeError: ids that are no integers.
      ValueError: no prompts, an empty one, or a mask with a gap or of another shape.

    Example:
      >>> [p.tolist() for p in listed([[1, 2], [0, 3]], [[True, True], [False, True]])]
      [[1, 2], [3]]
    """
    rows = [np.asarray(p) for p in prompts]
    if not rows:
        raise ValueError("`prompts` must hold at least one prompt, got none")
    for k, row in enumerate(rows):
        if row.ndim != 1 or (row.size and not np.issubdtype(row.dtype, np.integer)):
            raise TypeError(
                f"`prompts[{k}]` must be a sequence of integers, "
                f"got {row.dtype}{list(row.shape)}; encode text with a tokenizer first"
            )
    if mask is not None:
        rows = _unpadded(rows, np.asarray(mask))
    empty = [k for k, row in enumerate(rows) if not row.size]
    if empty:
        raise ValueError(f"`prompts[{empty[0]}]` must have at least one token, got none")
    return [row.astype(np.int32) for row in rows]


def _unpadded(rows: list[HostArray], mask: HostArray) -> list[HostArray]:
    if mask.dtype != np.bool_ and not np.isin(mask, (0, 1)).all():
        raise TypeError(f"`mask` must be bool, got {mask.dtype}")
    mask = mask.astype(bool)
    if mask.ndim != 2 or len(mask) != len(rows) or {len(r) for r in rows} != {mask.shape[1]}:
        raise ValueError(
            f"`mask` must have the shape of `prompts`, got {list(mask.shape)} for {len(rows)} "
            "prompts"
        )
    for k, row in enumerate(mask):
        found = np.flatnonzero(row)
        if found.size and found[-1] - found[0] + 1 != found.size:
            raise ValueError(
                f"`mask[{k}]` must be True on one stretch of tokens, got padding between tokens"
            )
    return [row[real] for row, real in zip(rows, mask, strict=True)]


def refuse_unfit_prompts(
    prompts: list[Int[HostArray, "_"]], limits: list[int], vocabulary: int, context: int | None
) -> None:
    """Refuses token ids outside of the vocabulary, and texts that exceed the context.

    Raises:
      ValueError: the prompt is named.
    """
    for k, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        if prompt.min() < 0 or prompt.max() >= vocabulary:
            bad = prompt[(prompt < 0) | (prompt >= vocabulary)][0]
            raise ValueError(
                f"`prompts[{k}]` must contain tokens in 0..{vocabulary - 1}, got {bad}"
            )
        if context is not None and len(prompt) + limit > context:
            raise ValueError(
                f"`prompts[{k}]` has {len(prompt)} tokens, and with {limit} more it exceeds the "
                f"context of {context}"
            )


def checked_limits(max_tokens: Any, count: int) -> list[int]:
    """Tokens to write for each of `count` prompts.

    Raises:
      TypeError, ValueError: an entry is not an integer of at least 1, or their number is wrong.

    Example:
      >>> checked_limits(3, 2)
      [3, 3]
    """
    several = np.ndim(max_tokens) > 0
    limits = list(max_tokens) if several else [max_tokens] * count
    if len(limits) != count:
        raise ValueError(
            f"`max_tokens` must be one or one for each of the {count} prompts, got {len(limits)}"
        )
    return [positive_integer(limit, "max_tokens") for limit in limits]


def checked_stops(stop: int | Sequence[int]) -> list[int]:
    """Stop tokens as a list.

    Raises:
      TypeError: not integers.

    Example:
      >>> checked_stops(2)
      [2]
    """
    stops = np.atleast_1d(np.asarray(stop))
    if stops.ndim != 1 or (stops.size and not np.issubdtype(stops.dtype, np.integer)):
        raise TypeError(f"`stop` must be token ids, got {stop!r}")
    return [int(token) for token in stops]
