"""One round of decoding: drafts, their verification in one pass, acceptance row by row.

A row has tokens 0..K-1, of which the first F are in the cache. A round runs the tokens F..F+n, the
known ones and then n drafts. Each row keeps its own longest prefix of right drafts and the token
that follows it. Keys and values of refused drafts stay in the cache: a later round writes over them
before any query reads them. A row whose prompt is not yet read to its end reads prompt tokens in
place of drafts.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dynexit.core.shapes import Array, Bool, Float, Int, Key, PyTree
from dynexit.decoding.drafts import looked_up
from dynexit.decoding.plan import FIRST_RATE, Carry, Given, Plan
from dynexit.decoding.requests import LIMITED, RUNNING, STOPPED, Requests
from dynexit.decoding.sampling import Rules, drawn, penalised, probabilities

SPEED = 0.2  # of the average of acceptance, per round with drafts
RECOVERY = 0.02  # of its return to the first value, per round without
MARGIN = 0.05  # of the costs, which are measured; drafts must promise more


class Rows(NamedTuple):
    """What a round knows of the requests in its slots.

    Attributes:
      live: bool `[S]`, whether the slot has a request.
      text: int32 `[S, T]`, its tokens.
      known: int32 `[S]`, K.
      filled: int32 `[S]`, F.
      rules: how its tokens are drawn.
      keys: its key.
    """

    live: Bool[Array, "S"]
    text: Int[Array, "S T"]
    known: Int[Array, "S"]
    filled: Int[Array, "S"]
    rules: Rules
    keys: Key[Array, "S"]


class Drafted(NamedTuple):
    """The tokens that a round verifies.

    Attributes:
      tokens: int32 `[S, w]`, those at places F..F+d.
      many: int32 `[S]`, how many follow the first.
      state: of the tokens, after block E.
      p: float32 `[S, d, V]`, the distribution of each draft; None where none is sampled.
    """

    tokens: Int[Array, "S w"]
    many: Int[Array, "S"]
    state: PyTree
    p: Float[Array, "S d V"] | None


def one_round(plan: Plan, given: Given, carry: Carry, d: int) -> Carry:
    """Runs the next tokens of every slot, with d drafts."""
    rows = rows_of(carry)
    draft = draft_early if plan.exit and d else draft_nothing
    drafted, cache = draft(plan, given, carry, rows, d)
    places = rows.filled[:, None] + jnp.arange(d + 1)[None]
    used = rows.live[:, None] & (jnp.arange(d + 1)[None] <= drafted.many[:, None])
    positions = jnp.where(used, places, plan.room)
    decoder, state, first = plan.decoder, drafted.state, plan.exit
    if draft is draft_nothing:
        first, state, cache = before_head(plan, given, state, positions, cache)
    state, cache = decoder.blocks(given.weights, first, decoder.depth, state, positions, cache)
    logits = decoder.logits(given.weights, state)
    carry = accepted(plan, carry._replace(cache=cache), rows, drafted, logits, d)
    carry = carry._replace(deepest=carry.deepest + decoder.depth)
    return carry._replace(choice=next_round(plan, given, carry))


def before_head(
    plan: Plan,
    given: Given,
    state: PyTree,
    positions: Array,
    cache: PyTree,
    rows: Array | None = None,
) -> tuple[int, PyTree, PyTree]:
    """The blocks before a draft head, which keeps what they compute of tokens that are no drafts.

    Returns:
      The block to go on with, 0 without a head; the state before it, and the cache.
    """
    if not plan.head:
        return 0, state, cache
    decoder, weights, end = plan.decoder, given.weights, plan.decoder.depth
    state, cache = decoder.blocks(weights, 0, plan.exit, state, positions, cache, rows)
    cache = decoder.fill(weights, end, end + 1, state, positions, cache, rows)
    return plan.exit, state, cache


def rows_of(carry: Carry) -> Rows:
    """The requests in the slots; an empty slot has any request's tokens."""
    requests, of = carry.requests, carry.of
    look = lambda a: a.at[of].get(mode="clip")
    live = of < requests.length.shape[0]
    rules = jax.tree.map(look, requests.rules)
    keys = jax.random.wrap_key_data(look(requests.keys))
    return Rows(live, look(requests.tokens), look(requests.length), carry.filled, rules, keys)


def next_round(plan: Plan, given: Given, carry: Carry) -> Int[Array, ""]:
    """The index of the number of drafts that is expected to finish soonest.

    A row whose drafts are accepted with probability a writes (1 - a^{n+1}) / (1 - a) tokens in a
    round with n drafts. While requests wait, the most tokens per cost count; after that the cost
    until the last row is finished. Drafts must promise a gain of more than `MARGIN`. K where there
    is something to do before.
    """
    size = carry.requests.length.shape[0]
    live, waits = carry.of < size, carry.waiting < carry.queued
    idle = ~live.any() | (~live.all() & waits)
    idle = idle | (unread(plan, carry) > 0).any()
    if len(plan.lengths) == 1:
        return idle.astype(jnp.int32)  # a literal would make it weakly typed: another program
    look = lambda a: a.at[carry.of].get(mode="clip")
    known = look(carry.requests.length)
    a = jnp.where(known - carry.filled > 1, 0.99, carry.rate)  # it reads its prompt
    a = jnp.clip(a, 0.01, 0.99)[:, None]
    n = jnp.array(plan.lengths, jnp.float32)[None]
    written = jnp.where(live[:, None], (1 - a ** (n + 1)) / (1 - a), 0)
    left = jnp.where(live, look(carry.requests.limit) - known, 0).astype(jnp.float32)[:, None]
    last = (left / jnp.maximum(written, 1)).max(0)  # rounds until no row is left
    needed = jnp.where(waits, 1 / jnp.maximum(written.sum(0), 1), last) * given.costs
    needed = needed.at[1:].multiply(1 + MARGIN)
    return jnp.where(idle, len(plan.lengths), jnp.argmin(needed)).astype(jnp.int32)


def unread(plan: Plan, carry: Carry) -> Int[Array, "S"]:
    """Known tokens of each slot that are read in chunks: all but those that one round reads."""
    size = carry.requests.length.shape[0]
    known = carry.requests.length.at[carry.of].get(mode="clip")
    left = jnp.where(carry.of < size, known - carry.filled, 0)
    return jnp.where(left > plan.width, left - 1, 0)


def draft_nothing(
    plan: Plan, given: Given, carry: Carry, rows: Rows, d: int
) -> tuple[Drafted, PyTree]:
    """Known tokens, and behind them what prompt lookup finds."""
    places = jnp.arange(d + 1)[None]
    at = rows.filled[:, None] + places
    tokens = jnp.take_along_axis(rows.text, jnp.minimum(at, plan.room - 1), axis=1)
    count = jnp.minimum(rows.known - rows.filled - 1, d)
    p = None
    if plan.ngram and d:
        found, many = looked_up(rows.text, rows.known, plan.ngram, d)
        behind = jnp.clip(at - rows.known[:, None], 0, d - 1)
        copied = jnp.take_along_axis(found, behind, axis=1)
        tokens = jnp.where(at < rows.known[:, None], tokens, copied)
        count = jnp.minimum(rows.known - rows.filled - 1 + many, d)
        if plan.uses.sampled:
            p = jax.nn.one_hot(tokens[:, 1:], plan.decoder.vocabulary, dtype=jnp.float32)
    positions = jnp.where(rows.live[:, None] & (places <= count[:, None]), at, plan.room)
    state = plan.decoder.embed(given.weights, tokens, positions)
    return Drafted(tokens, count, state, p), carry.cache


def draft_early(
    plan: Plan, given: Given, carry: Carry, rows: Rows, d: int
) -> tuple[Drafted, PyTree]:
    """Drafts of the first E blocks, token by token; their states are kept for the verification."""
    decoder, slots, end = plan.decoder, plan.slots, plan.decoder.depth
    at = lambda i: jnp.where(rows.live, rows.filled + i, plan.room)[:, None]
    place = lambda i: jnp.minimum(rows.filled + i, plan.room - 1)[:, None]
    text = lambda i: jnp.take_along_axis(rows.text, place(i), axis=1)[:, 0]
    write = lambda a, new, i: lax.dynamic_update_slice_in_dim(a, new, i, axis=1)
    first = decoder.embed(given.weights, text(0)[:, None], at(0))
    states = jax.tree.map(lambda a: jnp.zeros((slots, d + 1, *a.shape[2:]), a.dtype), first)
    p = jnp.zeros((slots, d, decoder.vocabulary)) if plan.uses.sampled else None

    def early(i: Any, tokens: Array, states: PyTree, cache: PyTree) -> tuple[PyTree, ...]:
        token = lax.dynamic_slice_in_dim(tokens, i, 1, axis=1)
        state = decoder.embed(given.weights, token, at(i))
        state, cache = decoder.blocks(given.weights, 0, plan.exit, state, at(i), cache)
        return state, jax.tree.map(lambda a, b: write(a, b, i), states, state), cache

    def one(i: Array, drafting: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        tokens, cache, states, p = drafting
        state, states, cache = early(i, tokens, states, cache)
        if plan.head:
            state, cache = decoder.blocks(given.weights, end, end + 1, state, at(i), cache)
        token, p = drafted_token(plan, given, rows, state, i, p)
        token = jnp.where(rows.filled + i + 1 < rows.known, text(i + 1), token)
        return write(tokens, token[:, None], i + 1), cache, states, p

    tokens = jnp.zeros((slots, d + 1), jnp.int32).at[:, 0].set(text(0))
    # of unknown length: XLA would inline one iteration, and would keep copies of the weights that
    # it and the last token share (`layers.panels`)
    length = jnp.where(carry.rounds < 0, 0, d)
    tokens, cache, states, p = lax.fori_loop(0, length, one, (tokens, carry.cache, states, p))
    state, states, cache = early(d, tokens, states, cache)
    if plan.head:
        cache = decoder.fill(given.weights, end, end + 1, state, at(d), cache)
    return Drafted(tokens, jnp.full(slots, d, jnp.int32), states, p), cache


def drafted_token(
    plan: Plan, given: Given, rows: Rows, state: PyTree, i: Array, p: Array | None
) -> tuple[Int[Array, "S"], Float[Array, "S d V"] | None]:
    """The next draft of each row, and the distributions with its own at i."""
    among, decoder = given.among, plan.decoder
    weights = decoder.draft_weights(given.weights) if plan.head else given.weights
    if among is None:
        logits = decoder.logits(weights, state)
    else:
        logits = decoder.logits_among(weights, state, among)
    if p is None:
        token = logits[:, 0].argmax(-1).astype(jnp.int32)
        return (token if among is None else among[token]), None
    q = probabilities(logits, rows.rules, plan.uses.filtered)[:, 0]
    if among is not None:
        q = jnp.zeros((plan.slots, p.shape[-1])).at[:, among].set(q)
    keys = token_keys(rows.keys, (rows.filled + i + 1)[:, None], 0)
    token = drawn(keys, q[:, None])[:, 0]
    return token, lax.dynamic_update_slice_in_dim(p, q[:, None], i, 1)


def token_keys(keys: Key[Array, "S"], places: Int[Array, "S w"], use: int) -> Key[Array, "S w"]:
    """A key for every place of every row; the same whatever the batch."""
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))
    at = fold(keys, places)
    return jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(at, jnp.int32(use))


def accepted(
    plan: Plan,
    carry: Carry,
    rows: Rows,
    drafted: Drafted,
    logits: Float[Array, "S w V"],
    d: int,
    depth: Int[Array, "S"] | None = None,
) -> Carry:
    """Keeps the right drafts of each row and the token that follows them.

    `depth` is the number of blocks that chose a token; None for all, or those that draft.
    """
    i = jnp.arange(d + 1)[None]
    at = rows.filled[:, None] + i + 1  # the place of the token that logits[:, i] predict
    forced = at < rows.known[:, None]
    following = jnp.pad(drafted.tokens[:, 1:], ((0, 0), (0, 1)))
    text = jnp.take_along_axis(rows.text, jnp.minimum(at, plan.room - 1), axis=1)
    if plan.uses.penalised:
        seen = seen_before(plan, rows, drafted.tokens)
        logits = penalised(logits, seen, rows.rules.penalty)
    right, chosen = verified(plan, rows, drafted, logits, at, following)
    ahead = (i < drafted.many[:, None]) & (right | forced)
    n = jnp.cumprod(ahead.astype(jnp.int32), axis=1).sum(1)  # drafts kept, of each row
    kept = i < n[:, None]
    token = jnp.where(forced, text, jnp.where(kept, following, chosen))
    new = (i <= n[:, None]) & ~forced & rows.live[:, None]
    blocks = jnp.where(kept & (plan.exit > 0), plan.exit, plan.decoder.depth)
    blocks = blocks if depth is None else depth[:, None]
    requests, _, finished = recorded(
        plan, carry.requests, carry.of, rows, at, token, new, blocks, logits
    )
    drafts = jnp.where(rows.live[:, None] & (i < drafted.many[:, None]) & ~forced, 1, 0).sum(1)
    taken = jnp.where(rows.live[:, None] & kept & ~forced, 1, 0).sum(1)
    count = lambda a, more: a.at[carry.of].add(more, mode="drop")
    requests = requests._replace(
        rounds=count(requests.rounds, rows.live.astype(jnp.int32)),
        drafted=count(requests.drafted, drafts),
        accepted=count(requests.accepted, taken),
    )
    trials = jnp.minimum(taken + 1, drafts)  # up to the first draft that is refused
    tried = rows.known - rows.filled <= d  # a row for which nothing was found counts as refused
    rate = carry.rate + SPEED * (taken / jnp.maximum(trials, 1) - carry.rate)
    idle = carry.rate + RECOVERY * (FIRST_RATE - carry.rate)
    return carry._replace(
        requests=requests,
        of=jnp.where(finished, requests.length.shape[0], carry.of),
        filled=jnp.where(rows.live & ~finished, rows.filled + n + 1, rows.filled),
        rate=jnp.where(tried, rate, idle),
        rounds=carry.rounds + 1,
    )


def verified(
    plan: Plan, rows: Rows, drafted: Drafted, logits: Array, at: Array, following: Array
) -> tuple[Bool[Array, "S w"], Int[Array, "S w"]]:
    """Which drafts are right, and the token that follows if the drafts before it are.

    Greedy: a draft is right if it is the most probable token. Sampled: a draft x of probability
    p(x) is right with probability min(1, q(x) / p(x)); where it is not, the token is drawn from
    max(q - p, 0), normalised.
    """
    if not plan.uses.sampled:
        chosen = logits.argmax(-1).astype(jnp.int32)
        return chosen == following, chosen
    q = probabilities(logits, rows.rules, plan.uses.filtered)
    if drafted.p is None:
        return jnp.zeros(at.shape, bool), drawn(token_keys(rows.keys, at, 2), q)
    p = jnp.pad(drafted.p, ((0, 0), (0, 1), (0, 0)))
    of = lambda a: jnp.take_along_axis(a, following[..., None], axis=2)[..., 0]
    uniform = jax.vmap(jax.vmap(jax.random.uniform))(token_keys(rows.keys, at, 1))
    right = uniform * of(p) < of(q)
    rest = jnp.maximum(q - p, 0)
    refused = (jnp.arange(q.shape[1])[None] < drafted.many[:, None])[..., None]
    rest = jnp.where(refused & (rest.sum(-1, keepdims=True) > 0), rest, q)
    return right, drawn(token_keys(rows.keys, at, 2), rest)


def seen_before(plan: Plan, rows: Rows, tokens: Int[Array, "S w"]) -> Bool[Array, "S w V"]:
    """Which tokens occur in the text up to each of the round's tokens."""
    slots = plan.slots
    place = jnp.arange(plan.room)[None]
    before = jnp.where(place < rows.filled[:, None], rows.text, plan.decoder.vocabulary)
    seen = jnp.zeros((slots, plan.decoder.vocabulary), bool)
    every = jnp.arange(slots)[:, None]
    seen = seen.at[every, before].set(True, mode="drop")
    new = jax.nn.one_hot(tokens, plan.decoder.vocabulary, dtype=jnp.int32)
    return seen[:, None] | (jnp.cumsum(new, axis=1) > 0)


def recorded(
    plan: Plan,
    requests: Requests,
    of: Int[Array, "S"],
    rows: Rows,
    at: Int[Array, "S w"],
    token: Int[Array, "S w"],
    new: Bool[Array, "S w"],
    blocks: Int[Array, "S w"],
    logits: Float[Array, "S w V"],
) -> tuple[Requests, Int[Array, "S"], Bool[Array, "S"]]:
    """Writes new tokens up to the first stop token and the limit.

    Returns:
      The requests, the length of each slot's text, and whether it is finished.
    """
    look = lambda a: a.at[of].get(mode="clip")
    stops, limit = look(requests.stops), look(requests.limit)
    ends = new & (token[..., None] == stops[:, None]).any(-1)
    earlier = jnp.cumsum(ends, axis=1) - ends.astype(jnp.int32) > 0
    new = new & ~earlier & (at < limit[:, None])
    length = jnp.maximum(rows.known, jnp.where(new, at + 1, 0).max(1))
    stopped, limited = (ends & new).any(1), length >= limit
    finished = rows.live & (stopped | limited)
    reason = jnp.where(stopped, STOPPED, jnp.where(limited, LIMITED, RUNNING))
    to, where = of[:, None], jnp.where(new, at, plan.room)
    put = lambda a, values: a.at[to, where].set(values, mode="drop")
    log_p = requests.log_probability
    if plan.log_probabilities:
        every = jax.nn.log_softmax(logits.astype(jnp.float32))
        log_p = put(log_p, jnp.take_along_axis(every, token[..., None], axis=2)[..., 0])
    requests = requests._replace(
        tokens=put(requests.tokens, token),
        depth=put(requests.depth, blocks),
        log_probability=log_p,
        length=requests.length.at[of].set(length, mode="drop"),
        reason=requests.reason.at[of].set(reason, mode="drop"),
    )
    return requests, length, finished
