"""Decoding in which each token exits at a depth of its own, and what its deeper blocks keep."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from dynexit.core.checks import positive_integer
from dynexit.core.decoder import Decoder
from dynexit.core.shapes import Array, Bool, Int, PyTree
from dynexit.core.types import Criterion, Halted, Step
from dynexit.decoding.plan import CacheRule, Carry, ExitPlan, Given, Plan
from dynexit.decoding.rounds import Drafted, Rows, accepted, next_round, rows_of
from dynexit.engine.deferred import goes_without, lacking
from dynexit.engine.run import Executor, run_until
from dynexit.engine.steps import whole


@dataclasses.dataclass(frozen=True)
class Exits:
    """Where tokens may exit while decoding, when they do, and what the cache holds then.

    The criterion is called after the blocks `after`, with the index of the exit and the output
    `{"logits": [b, V], "hidden": [b, D], "time": [b]}`; time is the fraction of a row's
    `max_tokens` that is written. If it does not read the logits, these are computed once, at the
    exit of each token.

    Rules of the cache for the blocks that a token has not run:
      propagate: keys and values are computed from the state with which it exited.
      recompute: the token is run again beside the next one, until one has run all blocks; every key
        and value is exact. At most `window` tokens are run together.
      skip: there are none, and later tokens do not attend to it in these blocks.

    Example:
      >>> import dynexit as dx
      >>> exits = Exits((2, 4), dx.criteria.margin_above(0.9))

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
    window = positive_integer(exits.window, "exits.window") if exits.cache == "recompute" else 1
    return ExitPlan(after, exits.cache, window, exits.executor)


def exit_round(plan: Plan, given: Given, carry: Carry) -> Carry:
    """Runs the next token of every slot to its exit."""
    exits, decoder = plan.exits, plan.decoder
    assert exits is not None
    rows, bounds = rows_of(carry), (0, *exits.after, decoder.depth)
    at = rows.filled[:, None] + jnp.arange(exits.window)[None]
    pending = (at < rows.known[:, None]) & rows.live[:, None]
    tokens = jnp.take_along_axis(rows.text, jnp.minimum(at, plan.room - 1), axis=1)
    positions = jnp.where(pending, at, plan.room)
    newest = rows.known - 1 - rows.filled  # the place of the newest token among those that run
    state = {
        "h": decoder.embed(given.weights, tokens, positions),
        "positions": positions,
        "newest": newest,
        "output": {
            "time": _time(carry, rows),
            "live": rows.live,
            "full": newest + 1 >= exits.window,
        },
    }
    if exits.cache != "recompute":
        state["output"]["full"] = jnp.zeros_like(rows.live)
    if exits.cache == "skip":
        state["present"] = blocks_present(plan, carry, rows)
    halted, logits = _run(plan, given, carry, state, bounds)
    depth, cache = jnp.array(bounds[1:])[halted.exit], halted.side
    whole = depth == decoder.depth
    if exits.cache == "propagate":
        cache = _propagated(plan, given, halted, positions, bounds)
    drafted = Drafted(tokens[:, :1], jnp.zeros(plan.slots, jnp.int32), None, None)
    ahead = rows._replace(filled=rows.known - 1)
    carry = accepted(plan, carry._replace(cache=cache), ahead, drafted, logits, 0, depth)
    carry = carry._replace(deepest=carry.deepest + jnp.where(rows.live, depth, 0).max())
    if exits.cache == "recompute":  # what has not run through all blocks runs again
        filled = jnp.where(rows.live & ~whole, rows.filled, carry.filled)
        carry = carry._replace(filled=filled)
    return carry._replace(choice=next_round(plan, given, carry))


def _time(carry: Carry, rows: Rows) -> Array:
    """The fraction of each row's tokens that is written."""
    look = lambda a: a.at[carry.of].get(mode="clip").astype(jnp.float32)
    prompt, limit = look(carry.requests.prompt), look(carry.requests.limit)
    return (rows.known.astype(jnp.float32) - prompt) / jnp.maximum(limit - prompt, 1)


def blocks_present(plan: Plan, carry: Carry, rows: Rows) -> Int[Array, "S T"]:
    """How many blocks have keys and values of each position.

    The depth of a token is recorded with the token that it chose, one place later.
    """
    depth = carry.requests.depth.at[carry.of].get(mode="clip")
    depth = jnp.pad(depth[:, 1:], ((0, 0), (0, 1)))
    newest = jnp.arange(plan.room)[None] >= (rows.known - 1)[:, None]
    return jnp.where((depth == 0) | newest, plan.decoder.depth, depth)


def _run(
    plan: Plan, given: Given, carry: Carry, state: PyTree, bounds: tuple[int, ...]
) -> tuple[Halted, Array]:
    """Runs the blocks between exits as stages; the logits `[S, 1, V]` at each row's exit."""
    exits, decoder = plan.exits, plan.decoder
    assert exits is not None
    assert given.criterion is not None
    criterion = _guarded(given.criterion)
    shape = lambda shape, dtype: jax.ShapeDtypeStruct((plan.slots, *shape), dtype)
    hidden = jax.eval_shape(_newest, state["h"], state["newest"])
    logits = jax.eval_shape(decoder.logits, given.weights, hidden)
    late = {"logits": shape(logits.shape[2:], logits.dtype)}
    other = {"hidden": jax.tree.map(lambda a: shape(a.shape[2:], a.dtype), hidden)}
    other |= {k: shape((), a.dtype) for k, a in state["output"].items()}
    deferred = goes_without(criterion, other, late, plan.slots, len(bounds) - 1)
    criterion = lacking(criterion, late) if deferred else criterion
    apply = functools.partial(_segment, decoder, deferred)
    steps = [
        Step(Partial(whole, given.weights), Partial(functools.partial(apply, *pair)))
        for pair in itertools.pairwise(bounds)
    ]
    depths = (1,) * len(steps)
    halted = run_until(
        tuple(steps), state, depths, criterion, exits.executor, None, False, carry.cache
    )
    if not deferred:
        return halted, halted.output["logits"][:, None]
    hidden = jax.tree.map(lambda a: a[:, None], halted.output["hidden"])
    return halted, decoder.logits(given.weights, hidden)


def _segment(
    decoder: Decoder,
    deferred: bool,
    first: int,
    last: int,
    weights: PyTree,
    i: Array,
    state: PyTree,
    rows: Array,
    cache: PyTree,
) -> tuple[PyTree, PyTree, PyTree]:
    """Blocks first..last-1 of some rows, and the output of the exit after them."""
    more = {"present": state["present"]} if "present" in state else {}
    h, cache = decoder.blocks(
        weights, first, last, state["h"], state["positions"], cache, rows, **more
    )
    hidden = _newest(h, state["newest"])
    output = {**state["output"], "hidden": jax.tree.map(lambda a: a[:, 0], hidden)}
    if not deferred:
        output["logits"] = decoder.logits(weights, hidden)[:, 0]
    return {**state, "h": h}, output, cache


def _newest(h: PyTree, newest: Array) -> PyTree:
    """The state of each row's newest token, `[b, 1, ...]`."""

    def take(a: Array) -> Array:
        index = newest.reshape(-1, *[1] * (a.ndim - 1))
        return jnp.take_along_axis(a, jnp.maximum(index, 0), axis=1)

    return jax.tree.map(take, h)


def _guarded(criterion: Criterion) -> Criterion:
    """The criterion, which lets empty slots exit at once, and rows with a full window never."""

    def score(i: Array, output: PyTree, memory: PyTree) -> tuple[PyTree, PyTree]:
        found, memory = criterion.score(i, output, memory)
        return {"found": found, "live": output["live"], "full": output["full"]}, memory

    def decide(i: Array, score: PyTree, memory: PyTree) -> tuple[Bool[Array, "b"], PyTree]:
        exit, memory = criterion.decide(i, score["found"], memory)
        return (exit & ~score["full"]) | ~score["live"], memory

    return dataclasses.replace(criterion, score=score, decide=decide)


def _propagated(
    plan: Plan, given: Given, halted: Halted, positions: Array, bounds: tuple[int, ...]
) -> PyTree:
    """The cache with keys and values of exited rows in the blocks that they have not run."""
    decoder, cache = plan.decoder, halted.side
    h = jax.tree.map(lambda a: a[:, None], halted.output["hidden"])
    for k in range(1, len(bounds) - 1):
        early = halted.exit < k
        at = jnp.where(early[:, None], positions, plan.room)

        def fill(carry: tuple[Array, PyTree], k: int = k, at: Array = at) -> tuple[Array, PyTree]:
            args = given.weights, bounds[k], bounds[k + 1], h, at
            return jnp.bool_(False), decoder.fill(*args, carry[1])

        # a loop of at most one trip: XLA copies the cache through a `cond`
        _, cache = lax.while_loop(lambda c: c[0], fill, (early.any(), cache))
    return cache
