"""Text generation by any autoregressive model, for any number of prompts at once."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from dynexit.core.checks import positive_integer
from dynexit.core.decoder import Decoder
from dynexit.core.shapes import Array, Float, HostArray, Int, Key, PyTree
from dynexit.core.types import Model
from dynexit.decoding.drafts import Draft
from dynexit.decoding.exits.settings import Exits
from dynexit.decoding.exits.work import Work
from dynexit.decoding.prompts import checked_limits, checked_stops, listed
from dynexit.decoding.sampling import GREEDY, Sampling, checked_samplings
from dynexit.decoding.session import Session


class Generated(NamedTuple):
    """What was written, row by row, on the host.

    Attributes:
      tokens: one int32 array a prompt, without the prompt; a stop token is its last entry.
      depth: one int32 array a prompt: the number of blocks that chose each token. It is E for an
        accepted draft of E blocks and N for the others.
      log_probability: one float32 array a prompt, ln p in nats at temperature 1 given the tokens
        before; None if not asked for.
      reason: why each row ended, "stop" or "length".
      rounds: rounds of each row, int32 `[M]`; a round verifies the drafts of a row at once.
      drafted, accepted: drafts of each row, and those that were right, int32 `[M]`.
      total_rounds: rounds of the whole batch, or of the device that ran the most.
      mean_deepest: mean over these rounds of the blocks of the deepest row: a batch whose rows run
        together takes this time, where its rows take that of their mean depth. With `Exits.park` a
        round in which no row runs deeper blocks counts those before the first exit.
      work: blocks, probes and keys and values of skipped blocks, summed over all tokens; None
        without exits.
    """

    tokens: list[Int[HostArray, "_"]]
    depth: list[Int[HostArray, "_"]]
    log_probability: list[Float[HostArray, "_"]] | None
    reason: list[str]
    rounds: Int[HostArray, "M"]
    drafted: Int[HostArray, "M"]
    accepted: Int[HostArray, "M"]
    total_rounds: int
    mean_deepest: float
    work: Work | None


class Token(NamedTuple):
    """One token of a stream.

    Attributes:
      row: index of the prompt.
      token: its id.
      depth: blocks that chose it.
      log_probability: ln p in nats, or None.
      last: whether the row ends with it.
    """

    row: int
    token: int
    depth: int
    log_probability: float | None
    last: bool


def generate(
    decoder: Decoder | Model,
    params: PyTree,
    prompts: Any,
    max_tokens: int | Sequence[int] = 64,
    *,
    mask: Any = None,
    sampling: Sampling | Sequence[Sampling] = GREEDY,
    key: Key[Array, ""] | None = None,
    stop: int | Sequence[int] = (),
    stop_strings: Sequence[str] = (),
    decode: Callable[[list[int]], str] | None = None,
    draft: Draft | None = None,
    exits: Exits | None = None,
    slots: int | None = None,
    chunk: int = 64,
    log_probabilities: bool = False,
    mesh: Mesh | None = None,
) -> Generated:
    """Continues prompts, in one compiled program.

    Rows are independent: the tokens of a prompt are the same alone, in a batch, and in a queue.
    With `draft` the tokens are those of plain decoding (greedy), or have its distribution
    (sampled): several tokens of a row are drafted at low cost and verified in one pass of the
    model, which reads the weights once.

    Args:
      decoder: a `Model` whose `decoder` fulfils `dynexit.core.decoder.Decoder`, or that decoder.
      params: parameters of the model, or `decoder.unstack(params)`, which is not copied again.
      prompts: token ids: integers `[M, P]`, or one sequence a prompt.
      max_tokens: tokens to write, for all prompts or for each.
      mask: bool `[M, P]`, True at tokens and False at padding, which may be on the left or on the
        right; None for no padding.
      sampling: how tokens are drawn, for all prompts or for each; greedy by default.
      key: for sampling. A row draws the same tokens in any batch and at any number of slots.
      stop: tokens that end a row.
      stop_strings: strings that end a row; the row ends with the token that completes one.
      decode: text of token ids, needed for `stop_strings`.
      draft: `EarlyExit` or `PromptLookup`; None for plain decoding.
      exits: lets each token exit at a depth of its own, which changes the text; None for full
        depth.
      slots: rows that run at once; further prompts wait, and each takes the slot of a row that has
        ended. None for all.
      chunk: tokens of a prompt that are read at once.
      log_probabilities: whether to return them.
      mesh: devices. Rows are split over all axes but "model", along which heads and the inner width
        are split; `slots` are then those of each device or group of devices along "model".

    Returns:
      `Generated`.

    Raises:
      TypeError: an argument has a wrong type.
      ValueError: an empty prompt, a token outside of the vocabulary, a prompt that with its
        `max_tokens` exceeds the context, or another value out of range.

    Example:
      >>> import jax, dynexit as dx
      >>> model = dx.models.CausalLM(width=16, depth=2, heads=2).build(dx.Tokens(50), 50)
      >>> params = model.init(jax.random.key(0))
      >>> plain = generate(model, params, [[1, 2, 3], [4]], 5)
      >>> drafted = generate(model, params, [[1, 2, 3], [4]], 5, draft=dx.decoding.EarlyExit(1))
      >>> plain.tokens[0].tolist() == drafted.tokens[0].tolist()
      True

    Source: Elhoushi et al. 2024, arXiv 2404.16710, drafts; Leviathan et al. 2023, arXiv
      2211.17192, sampling; Yu et al. 2022, Orca, slots. Deviation: rows of a batch accept drafts
      of different lengths.
    """
    session, index = _begun(
        decoder, params, prompts, max_tokens, mask, sampling, key, stop, draft, exits, slots, chunk,
        log_probabilities, mesh,
    )  # fmt: skip
    if stop_strings:
        _run_to_strings(session, list(stop_strings), decode)
    else:
        session.run()
    return generated(session, index)


def stream(
    decoder: Decoder | Model,
    params: PyTree,
    prompts: Any,
    max_tokens: int | Sequence[int] = 64,
    *,
    mask: Any = None,
    sampling: Sampling | Sequence[Sampling] = GREEDY,
    key: Key[Array, ""] | None = None,
    stop: int | Sequence[int] = (),
    draft: Draft | None = None,
    exits: Exits | None = None,
    slots: int | None = None,
    chunk: int = 64,
    log_probabilities: bool = False,
    mesh: Mesh | None = None,
    rounds: int = 1,
) -> Iterator[Token]:
    """As `generate`, token by token.

    Args:
      decoder, params, prompts, max_tokens, mask, sampling, key, stop: as in `generate`.
      draft, exits, slots, chunk, log_probabilities, mesh: as in `generate`.
      rounds: rounds between two looks at the device; more of them cost less time.

    Returns:
      An iterator of `Token`; those of a row are in order.

    Raises:
      TypeError, ValueError: as `generate`.

    Example:
      >>> import jax, dynexit as dx
      >>> model = dx.models.CausalLM(width=16, depth=2, heads=2).build(dx.Tokens(50), 50)
      >>> params = model.init(jax.random.key(0))
      >>> [token.row for token in stream(model, params, [[1, 2, 3]], 2)]
      [0, 0]
    """
    positive_integer(rounds, "rounds")
    session, _ = _begun(
        decoder, params, prompts, max_tokens, mask, sampling, key, stop, draft, exits, slots, chunk,
        log_probabilities, mesh,
    )  # fmt: skip
    return _tokens(session, rounds)


def _tokens(session: Session, rounds: int) -> Iterator[Token]:
    done: dict[int, int] = {}
    while session.busy:
        session.run(rounds)
        for entry in session.progress():
            before = done.get(entry.request, 0)
            done[entry.request] = len(entry.tokens)
            for k in range(before, len(entry.tokens)):
                last = entry.reason is not None and k == len(entry.tokens) - 1
                log_p = None if entry.log_probability is None else float(entry.log_probability[k])
                yield Token(entry.request, int(entry.tokens[k]), int(entry.depth[k]), log_p, last)


def _begun(
    decoder: Any, params: Any, prompts: Any, max_tokens: Any, mask: Any, sampling: Any, key: Any,
    stop: Any, draft: Any, exits: Any, slots: Any, chunk: Any, log_probabilities: bool, mesh: Any,
) -> tuple[Session, list[int]]:  # fmt: skip
    given = listed(prompts, mask)
    limits, stops = checked_limits(max_tokens, len(given)), checked_stops(stop)
    samplings = checked_samplings(sampling, len(given))
    session = Session(
        decoder,
        params,
        slots=slots,
        room=max(len(p) + n for p, n in zip(given, limits, strict=True)),
        queue=len(given),
        draft=draft,
        exits=exits,
        chunk=chunk,
        log_probabilities=log_probabilities,
        key=key,
        mesh=mesh,
    )
    return session, session.add(given, limits, samplings, [stops] * len(given))


def _run_to_strings(session: Session, strings: list[str], decode: Any) -> None:
    if decode is None:
        raise TypeError(
            "`decode` must be a function from token ids to text where `stop_strings` are given"
        )
    found = lambda tokens: any(string in decode(tokens.tolist()) for string in strings)
    ended: set[int] = set()
    while session.busy:
        session.run(8)
        for entry in session.progress():
            if entry.request in ended:
                continue
            stops = found(entry.tokens)
            if stops:
                lengths = range(1, len(entry.tokens) + 1)
                session.end(entry.request, next(k for k in lengths if found(entry.tokens[:k])))
            if stops or entry.reason is not None:
                ended.add(entry.request)


def generated(session: Session, index: list[int]) -> Generated:
    """The results of some requests of a session that has run to its end."""
    entries = {entry.request: entry for entry in session.progress()}
    found = [entries[k] for k in index]
    recorded = [entry.log_probability for entry in found if entry.log_probability is not None]
    log_p = recorded if session.plan.log_probabilities else None
    counts = lambda name: np.array([getattr(entry, name) for entry in found], np.int32)
    return Generated(
        [entry.tokens for entry in found],
        [entry.depth for entry in found],
        log_p,
        [entry.reason or "length" for entry in found],
        counts("rounds"),
        counts("drafted"),
        counts("accepted"),
        session.rounds,
        session.mean_deepest,
        session.work(index),
    )
