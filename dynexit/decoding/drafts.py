"""Where drafts come from: the first blocks of the model, or the text so far."""

import dataclasses
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from dynexit.core.checks import positive_integer
from dynexit.core.decoder import Decoder
from dynexit.core.shapes import Array, Int, PyTree


@dataclasses.dataclass(frozen=True)
class EarlyExit:
    """Drafts of the model's own first blocks, verified by the others.

    Example:
      >>> draft = EarlyExit(exit=2, tokens=4)

    Source: Elhoushi et al. 2024, LayerSkip, arXiv 2404.16710, section 4.3; a head is that of
      Liu et al. 2024, Kangaroo, arXiv 2404.18911; `among` is the short list of Zhao et al. 2025,
      FR-Spec, arXiv 2502.14856. Deviations: rows of a batch accept drafts of different lengths,
      and nothing is removed from the cache.
    """

    exit: int
    """blocks E that draft, in 1..N-1"""
    tokens: int | tuple[int, ...] = 4
    """drafts of a row in one round; of several numbers, and none, each round has the best"""
    among: Any = None
    """integers `[M]`, the tokens that may be drafted; None for all"""
    head: PyTree = None
    """one more block, through which drafts are read: a dict of "block", its parameters, and
    optionally "norm", those of a final norm (`dx.models.language.draft_head`); None for none
    """


@dataclasses.dataclass(frozen=True)
class PromptLookup:
    """Drafts copied from the row's own text, after the last place with the same n tokens.

    Example:
      >>> draft = PromptLookup(tokens=8, ngram=3)

    Source: Saxena 2023, prompt lookup decoding; Yang et al. 2023, arXiv 2304.04487.
    """

    tokens: int | tuple[int, ...] = 8
    """drafts of a row in one round; of several numbers, and none, each round has the best"""
    ngram: int = 3
    """tokens that must agree; shorter matches, down to one token, are used where there is none"""


Draft: TypeAlias = EarlyExit | PromptLookup


def checked_draft(draft: Draft | None, decoder: Decoder) -> None:
    """Refuses a draft that does not fit the decoder.

    Raises:
      TypeError: `draft` is of another type.
      ValueError: a field is out of range; the field is named.
    """
    if draft is None:
        return
    if not isinstance(draft, (EarlyExit, PromptLookup)):
        raise TypeError(
            "`draft` must be dx.decoding.EarlyExit, dx.decoding.PromptLookup or None, "
            f"got {type(draft).__name__}"
        )
    several = draft.tokens if isinstance(draft.tokens, tuple) else (draft.tokens,)
    for tokens in several or (0,):
        positive_integer(tokens, "draft.tokens")
    if isinstance(draft, PromptLookup):
        positive_integer(draft.ngram, "draft.ngram")
        return
    if not 1 <= positive_integer(draft.exit, "draft.exit") < decoder.depth:
        raise ValueError(
            f"`draft.exit` must lie in 1..{decoder.depth - 1}, as the model has {decoder.depth} "
            f"blocks, got {draft.exit}"
        )
    if draft.among is not None:
        refuse_other_tokens(draft.among, "draft.among", decoder.vocabulary)


def refuse_other_tokens(tokens: Any, name: str, vocabulary: int) -> None:
    """Refuses what is no list of token ids.

    Raises:
      ValueError: other than integers `[M]` in 0..V-1; the argument is named.
    """
    among = np.asarray(tokens)
    bad = among.ndim != 1 or not among.size or not np.issubdtype(among.dtype, np.integer)
    if bad or among.min() < 0 or among.max() >= vocabulary:
        raise ValueError(
            f"`{name}` must be integers [M] in 0..{vocabulary - 1}, "
            f"got {among.dtype}{list(among.shape)}"
        )


def looked_up(
    tokens: Int[Array, "b T"], length: Int[Array, "b"], ngram: int, count: int
) -> tuple[Int[Array, "b count"], Int[Array, "b"]]:
    """What followed the latest earlier occurrence of each row's last tokens.

    Args:
      tokens: the text of each row; what follows `length` is not read.
      length: tokens of each row.
      ngram: the longest suffix that is looked for; shorter ones where it does not occur.
      count: tokens to copy.

    Returns:
      The copied tokens, and how many of them exist, 0 where the last token is new.

    Example:
      >>> text = jnp.array([[5, 6, 7, 8, 5, 6, 0, 0]])
      >>> found, many = looked_up(text, jnp.array([6]), 3, 2)
      >>> found.tolist(), many.tolist()
      ([[7, 8]], [2])
    """
    room = tokens.shape[1]
    place = jnp.arange(room)[None]
    # agrees[b, j]: how many tokens before place j equal the last ones of the row
    agrees = jnp.zeros(tokens.shape, jnp.int32)
    unbroken = jnp.ones(tokens.shape, bool)
    for k in range(1, ngram + 1):
        last = jnp.take_along_axis(tokens, jnp.maximum(length - k, 0)[:, None], axis=1)
        before = jnp.pad(tokens, ((0, 0), (k, 0)))[:, :room]
        unbroken = unbroken & (before == last) & (place >= k) & (length >= k)[:, None]
        agrees = agrees + unbroken.astype(jnp.int32)
    agrees = jnp.where(place < length[:, None], agrees, 0)
    best = jnp.argmax(agrees * room + jnp.where(agrees > 0, place, 0), axis=1)
    found = jnp.take_along_axis(agrees, best[:, None], axis=1)[:, 0] > 0
    where = best[:, None] + jnp.arange(count)[None]
    copied = jnp.take_along_axis(tokens, jnp.minimum(where, room - 1), axis=1)
    return copied, jnp.where(found, jnp.minimum(length - best, count), 0)
