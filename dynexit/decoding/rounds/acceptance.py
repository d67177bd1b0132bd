"""Which drafts are right, the token that follows them, and what a request records."""

import jax
import jax.numpy as jnp

from dynexit.core.shapes import Array, Bool, Float, Int
from dynexit.decoding.plan import FIRST_RATE, Carry, Plan
from dynexit.decoding.requests import LIMITED, RUNNING, STOPPED, Requests
from dynexit.decoding.rounds.rows import Drafted, Rows, token_keys
from dynexit.decoding.sampling import drawn, penalised, probabilities

SPEED = 0.2  # of the average of acceptance, per round with drafts
RECOVERY = 0.01  # of its return to the first value, per round without


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
    requests, finished = recorded(
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
) -> tuple[Requests, Bool[Array, "S"]]:
    """Writes new tokens up to the first stop token and the limit.

    Returns:
      The requests, and whether each slot's is finished.
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
    return requests, finished
