"""One round: drafts, and their verification in one pass."""

import jax.numpy as jnp

from dynexit.core.shapes import Array, PyTree
from dynexit.decoding.plan import Carry, Given, Plan
from dynexit.decoding.rounds.acceptance import accepted
from dynexit.decoding.rounds.choice import next_round
from dynexit.decoding.rounds.drafting import draft_early, draft_nothing
from dynexit.decoding.rounds.rows import rows_of


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
