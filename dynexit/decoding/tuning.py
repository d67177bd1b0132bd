"""`tune`: measures drafts, exits and numbers of slots on the user's prompts, and chooses."""

import itertools
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dynexit.core.checks import positive_integer
from dynexit.core.decoder import Decoder
from dynexit.core.shapes import Key, PyTree
from dynexit.core.types import Model
from dynexit.decoding.arguments import decoder_of
from dynexit.decoding.drafts import Draft, EarlyExit, PromptLookup
from dynexit.decoding.exits.settings import Exits
from dynexit.decoding.prompts import checked_limits, checked_stops, listed
from dynexit.decoding.sampling import GREEDY, Sampling, checked_samplings
from dynexit.decoding.session import Session, Written

HEAD = ("", "slots", "tokens/s", "ratio", "accepted", "rounds", "lossless", "equal")


class Measured(NamedTuple):
    """A candidate and what was measured.

    Attributes:
      draft, exits: of the candidate; both None for plain decoding.
      slots: rows that ran at once.
      tokens_per_second: of all rows, in the fastest repeat, the reading of prompts included.
      acceptance: accepted drafts divided by drafts; None where there are none.
      rounds_per_token: rounds of a row divided by its tokens.
      equal: prompts whose tokens equal those of plain decoding; None where tokens are sampled.
    """

    draft: Draft | None
    exits: Exits | None
    slots: int
    tokens_per_second: float
    acceptance: float | None
    rounds_per_token: float
    equal: int | None

    @property
    def lossless(self) -> bool:
        """Whether the tokens, or their distribution, are those of plain decoding."""
        return self.exits is None

    @property
    def plain(self) -> bool:
        """Whether it has neither drafts nor exits."""
        return self.draft is None and self.exits is None

    @property
    def name(self) -> str:
        """The candidate in a few words."""
        draft = self.draft
        if self.exits is not None:
            return f"Exits({self.exits.after}, {self.exits.cache})"
        if isinstance(draft, PromptLookup):
            return f"PromptLookup({draft.tokens}, {draft.ngram})"
        if draft is None:
            return "plain"
        among = "" if draft.among is None else f", among {len(draft.among)}"
        head = "" if draft.head is None else ", head"
        return f"EarlyExit({draft.exit}, {draft.tokens}{among}{head})"


class Choice(NamedTuple):
    """The choice of `tune` and the measurements; `rich.print(choice)` prints them as a table.

    Attributes:
      best: the measurement of what is chosen.
      measured: every candidate with every number of slots.
      prompts: M.
    """

    best: Measured
    measured: tuple[Measured, ...]
    prompts: int

    @property
    def draft(self) -> Draft | None:
        """For `generate`, `stream` and `Session`."""
        return self.best.draft

    @property
    def exits(self) -> Exits | None:
        """For `generate`, `stream` and `Session`."""
        return self.best.exits

    @property
    def slots(self) -> int:
        """For `generate`, `stream` and `Session`."""
        return self.best.slots

    def __str__(self) -> str:
        best, plain = self.best, fastest(self.measured, True).tokens_per_second
        line = f"{best.name}, slots {best.slots}, {best.tokens_per_second:.1f} tokens/s"
        if not best.plain:
            line += f", {best.tokens_per_second / plain:.2f} times plain"
        elif other := fastest(self.measured, False):
            line += f"; next {other.name}, slots {other.slots}, {other.tokens_per_second:.1f}"
        if best.acceptance is not None:
            line += f", {best.acceptance:.0%} of drafts accepted"
        return line

    def __rich__(self) -> Any:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        plain = fastest(self.measured, True).tokens_per_second
        table = Table(caption=str(self), caption_justify="left", box=SIMPLE_HEAD, padding=0)
        for k, name in enumerate(HEAD):
            table.add_column(name, justify="right" if k else "left", no_wrap=True)
        for m in self.measured:
            table.add_row(
                m.name,
                str(m.slots),
                f"{m.tokens_per_second:.1f}",
                f"{m.tokens_per_second / plain:.2f}",
                "-" if m.acceptance is None else f"{m.acceptance:.2f}",
                f"{m.rounds_per_token:.2f}",
                "yes" if m.lossless else "no",
                "-" if m.equal is None else f"{m.equal}/{self.prompts}",
            )
        return table


def tune(
    decoder: Decoder | Model,
    params: PyTree,
    prompts: Any,
    max_tokens: int | Sequence[int] = 64,
    *,
    candidates: Sequence[Draft | Exits | None] | None = None,
    slots: int | Sequence[int] | None = None,
    tokens: int = 32,
    repeats: int = 3,
    margin: float = 0.05,
    lossy: bool = False,
    mask: Any = None,
    sampling: Sampling | Sequence[Sampling] = GREEDY,
    key: Key[jax.Array, ""] | None = None,
    stop: int | Sequence[int] = (),
    chunk: int = 64,
    log_probabilities: bool = False,
    mesh: Mesh | None = None,
) -> Choice:
    """Measures candidates on the user's prompts and device, and chooses the fastest.

    Every candidate writes the first tokens after the same prompts, in turns. Its programs are those
    of `generate` with the same arguments, which compiles nothing after `tune`. Plain decoding is
    always measured, and chosen unless another candidate is faster by more than `margin`.

    Args:
      decoder, params, prompts, max_tokens: as in `generate`.
      candidates: drafts, exits, or None for plain decoding; None for plain decoding, `EarlyExit`
        after a quarter and after half of the blocks, and `PromptLookup`.
      slots: numbers of rows that run at once, each measured with every candidate; None for all.
      tokens: tokens that are written for each prompt in a repeat, at most.
      repeats: timed runs of each candidate; the shortest time counts.
      margin: the fraction by which a candidate must be faster than plain decoding.
      lossy: whether `Exits`, which change the text, may be chosen; they are measured in any case.
      mask, sampling, key, stop, chunk, log_probabilities, mesh: as in `generate`.

    Returns:
      `Choice`.

    Raises:
      TypeError, ValueError: as `generate`; a candidate is of another type, or `slots`, `tokens`,
        `repeats` or `margin` is out of range.

    Example:
      >>> import dynexit as dx
      >>> model = dx.models.CausalLM(width=16, depth=2, heads=2).build(dx.Tokens(50), 50)
      >>> params = model.init(jax.random.key(0))
      >>> choice = tune(model, params, [[1, 2, 3], [4]], 5, candidates=[None], repeats=1)
      >>> choice.draft, choice.slots, [m.name for m in choice.measured]
      (None, 2, ['plain'])
    """
    positive_integer(tokens, "tokens")
    positive_integer(repeats, "repeats")
    if not margin >= 0:
        raise ValueError(f"`margin` must be at least 0, got {margin}")
    inner = decoder_of(decoder)
    weights = inner.unstack(params)
    given = listed(prompts, mask)
    limits, stops = checked_limits(max_tokens, len(given)), checked_stops(stop)
    samplings = checked_samplings(sampling, len(given))
    tried = _checked_candidates(default_candidates(inner) if candidates is None else candidates)
    several = [len(given)] if slots is None else np.atleast_1d(slots).tolist()
    room = max(len(p) + n for p, n in zip(given, limits, strict=True))

    def write(candidate: Draft | Exits | None, slots: int) -> tuple[float, list[Written]]:
        """Seconds of one run and its texts; the cache is freed at the end."""
        session = Session(
            inner,
            weights,
            slots=slots,
            room=room,
            queue=len(given),
            draft=None if isinstance(candidate, Exits) else candidate,
            exits=candidate if isinstance(candidate, Exits) else None,
            chunk=chunk,
            log_probabilities=log_probabilities,
            key=key,
            mesh=mesh,
        )
        short = [min(limit, tokens) for limit in limits]
        session.add(given, short, samplings, [stops] * len(given))
        session.run(0)  # compiles in the first repeat
        jax.block_until_ready(session.carry.rounds)
        start = time.perf_counter()
        session.run()
        jax.block_until_ready(session.carry.rounds)
        return time.perf_counter() - start, session.progress()

    grid = list(itertools.product(tried, dict.fromkeys(several)))
    least, found = [math.inf] * len(grid), [list[Written]()] * len(grid)
    for _, k in itertools.product(range(repeats), range(len(grid))):
        seconds, found[k] = write(*grid[k])
        least[k] = min(least[k], seconds)
    greedy = all(rule.temperature == 0 for rule in samplings)
    wanted = found[0] if greedy else None
    measured = tuple(
        _measured(candidate, rows, seconds, written, wanted)
        for (candidate, rows), seconds, written in zip(grid, least, found, strict=True)
    )
    return Choice(chosen(measured, margin, lossy), measured, len(given))


def default_candidates(decoder: Decoder) -> tuple[Draft | None, ...]:
    """Plain decoding, the first quarter and half of the blocks, and prompt lookup.

    Example:
      >>> import dynexit as dx
      >>> model = dx.models.CausalLM(width=16, depth=8, heads=2).build(dx.Tokens(50), 50)
      >>> [draft.exit for draft in default_candidates(model.decoder)[1:3]]
      [2, 4]
    """
    exits = {max(1, decoder.depth // 4), decoder.depth // 2} & set(range(1, decoder.depth))
    return (None, *map(EarlyExit, sorted(exits)), PromptLookup())


def chosen(measured: Sequence[Measured], margin: float, lossy: bool) -> Measured:
    """The fastest plain measurement, or the fastest of all if it is faster by more than `margin`.

    Args:
      measured: plain decoding among them.
      margin: the fraction by which another must be faster.
      lossy: whether those that change the text may be chosen.
    """
    plain = fastest(measured, True)
    other = fastest([m for m in measured if lossy or m.lossless], False)
    least = (1 + margin) * plain.tokens_per_second
    return plain if other is None or other.tokens_per_second <= least else other


def fastest(measured: Sequence[Measured], plain: bool) -> Any:
    """The fastest measurement of plain decoding, or of the other candidates; None without any."""
    some = [m for m in measured if m.plain == plain]
    return max(some, key=lambda m: m.tokens_per_second, default=None)


def _checked_candidates(candidates: Sequence[Any]) -> list[Any]:
    """The candidates with plain decoding first."""
    for k, candidate in enumerate(candidates):
        if candidate is not None and not isinstance(candidate, (EarlyExit, PromptLookup, Exits)):
            raise TypeError(
                f"`candidates[{k}]` must be dx.decoding.EarlyExit, PromptLookup, Exits or None, "
                f"got {type(candidate).__name__}"
            )
    return [None, *(c for c in candidates if c is not None)]


def _measured(
    candidate: Draft | Exits | None,
    slots: int,
    seconds: float,
    written: list[Written],
    wanted: list[Written] | None,
) -> Measured:
    total = lambda name: sum(getattr(w, name) for w in written)
    count, drafted = sum(len(w.tokens) for w in written), total("drafted")
    equal = None
    if wanted is not None:
        pairs = zip(written, wanted, strict=True)
        equal = sum(np.array_equal(a.tokens, b.tokens) for a, b in pairs)
    return Measured(
        None if isinstance(candidate, Exits) else candidate,
        candidate if isinstance(candidate, Exits) else None,
        slots,
        count / seconds,
        total("accepted") / drafted if drafted else None,
        total("rounds") / count,
        equal,
    )
