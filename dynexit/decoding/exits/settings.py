"""Where tokens may exit while decoding."""

import dataclasses
from typing import Any

from dynexit.core.checks import positive_integer
from dynexit.core.decoder import Decoder
from dynexit.core.types import Criterion
from dynexit.decoding.drafts import refuse_other_tokens
from dynexit.decoding.exits.plan import CacheRule, ExitPlan
from dynexit.engine.run import Executor


@dataclasses.dataclass(frozen=True)
class Exits:
    """Where tokens may exit while decoding, when they do, and what the cache holds then.

    The criterion is called after the blocks `after`, with the index of the exit and the output
    `{"logits": [b, V], "hidden": [b, D], "time": [b]}`; time is the fraction of a row's
    `max_tokens` that is written. If it does not read the logits, these are computed once, at the
    exit of each token.

    With `among`, integers `[M]`, the output has the logits of these tokens too, "among" `[b, M]`.
    A criterion that reads them alone, `dx.criteria.margin_above(0.9, read=...)`, costs M / V of one
    that reads "logits".

    Rules of the cache for the blocks that a token has not run:
      propagate: keys and values are computed from the state with which it exited.
      recompute: the token is run again beside the next one, until one has run all blocks; every key
        and value is exact. At most `window` tokens are run together.
      skip: there are none, and later tokens do not attend to it in these blocks.

    With `park` = k, a row whose token does not exit at the first exit waits there. The other rows
    run the blocks before the first exit for their next tokens, k times at most. Then the blocks
    behind it run once for all rows that wait. Tokens, depths, keys and values are those of k = 0.

    Example:
      >>> import dynexit as dx
      >>> exits = Exits((2, 4), dx.criteria.margin_above(0.9), park=4)

    Source: Schuster et al. 2022, CALM, arXiv 2207.07061, propagate; Chen et al. 2024, EE-LLM,
      arXiv 2312.04916, recompute; skip as in D3 and CoLa. Deviation: rows exit one by one.
    """

    after: tuple[int, ...]
    """numbers of blocks, rising, in 1..N-1; every token exits after block N"""
    criterion: Criterion
    """when a token exits; its thresholds are traced"""
    cache: CacheRule = "propagate"
    """what the deeper blocks keep of a token that exited"""
    window: int = 4
    """tokens that a row runs at once, with "recompute" """
    executor: Executor = "masked"
    """as in `run_until`; "compacted" saves time where the cost of a block rises with the rows"""
    park: int = 0
    """sweeps that a row waits for its deeper blocks at most, not with "recompute"; 0 for none"""
    among: Any = None
    """tokens whose logits a criterion reads, such as the most frequent ones; None for none"""


def checked_exits(exits: Exits, decoder: Decoder) -> ExitPlan:
    """The static part; refuses what does not fit the decoder.

    Raises:
      TypeError: `exits` is of another type, or has no criterion.
      ValueError: a field is out of range; the field is named.
    """
    if not isinstance(exits, Exits):
        raise TypeError(f"`exits` must be dx.decoding.Exits, got {type(exits).__name__}")
    if not isinstance(exits.criterion, Criterion):
        kind = type(exits.criterion).__name__
        raise TypeError(f"`exits.criterion` must be a dx.Criterion, got {kind}")
    after, depth = tuple(exits.after), decoder.depth
    if not after or list(after) != sorted(set(after)) or after[0] < 1 or after[-1] >= depth:
        raise ValueError(
            f"`exits.after` must be rising numbers in 1..{depth - 1}, as the model has {depth} "
            f"blocks, got {after}"
        )
    if exits.criterion.exits not in (None, len(after) + 1):
        raise ValueError(
            f"`exits.criterion` has thresholds for {exits.criterion.exits} exits, and "
            f"`exits.after` makes {len(after) + 1} with the last block"
        )
    if exits.cache not in ("propagate", "recompute", "skip"):
        raise ValueError(
            f"`exits.cache` must be 'propagate', 'recompute' or 'skip', got {exits.cache!r}"
        )
    if exits.among is not None:
        refuse_other_tokens(exits.among, "exits.among", decoder.vocabulary)
    window = positive_integer(exits.window, "exits.window") if exits.cache == "recompute" else 1
    park = positive_integer(exits.park, "exits.park, where it is not 0,") if exits.park else 0
    if park and exits.cache == "recompute":
        raise ValueError(
            "`exits.park` must be 0 with `exits.cache` 'recompute', whose tokens run the blocks "
            f"before the first exit again, got {park}"
        )
    return ExitPlan(after, exits.cache, window, exits.executor, park)
