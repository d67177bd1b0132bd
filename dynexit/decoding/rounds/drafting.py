"""The tokens that a round verifies: known ones, and drafts behind them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from dynexit.core.shapes import Array, Float, Int, PyTree
from dynexit.decoding.drafts import looked_up
from dynexit.decoding.plan import Carry, Given, Plan
from dynexit.decoding.rounds.rows import Drafted, Rows, token_keys
from dynexit.decoding.sampling import drawn, probabilities


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
