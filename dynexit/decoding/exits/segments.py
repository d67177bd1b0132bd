"""The blocks between two exits as the stages of `run_until`, and what an exit reads."""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from dynexit.core.decoder import Cache
from dynexit.core.shapes import Array, Bool, Float, Int, PyTree
from dynexit.core.types import Criterion, Halted, Step
from dynexit.decoding.plan import Carry, Given, Plan
from dynexit.decoding.rounds.rows import Rows
from dynexit.engine.deferred import goes_without, lacking
from dynexit.engine.run import run_until
from dynexit.engine.steps import whole


def round_state(
    plan: Plan, carry: Carry, rows: Rows, h: PyTree, positions: Int[Array, "S w"]
) -> PyTree:
    """The state of `run_segments`, of the known tokens from `positions[:, 0]` on.

    Args:
      plan: of the program.
      carry: before the round.
      rows: those that run; others exit at once.
      h: the state of the tokens, leaves `[S, w, ...]`.
      positions: of the tokens, the room T for none.
    """
    exits = plan.exits
    assert exits is not None
    newest = jnp.where(rows.live, rows.known - 1 - rows.filled, 0)
    full = (newest + 1 >= exits.window) & (exits.cache == "recompute")
    output = {"time": _time(carry, rows), "live": rows.live, "full": full}
    state = {"h": h, "positions": positions, "newest": newest, "output": output}
    if exits.cache == "skip":
        state["present"] = _blocks_present(plan, carry, rows)
    return state


class Reading(NamedTuple):
    """How the exits of a round are read.

    Attributes:
      criterion: when a row exits.
      deferred: whether it reads no logits, which are then computed once a token.
      output: shapes of the output of an exit, leaves `[S, ...]`.
    """

    criterion: Criterion
    deferred: bool
    output: PyTree


def reading_of(plan: Plan, given: Given, state: PyTree) -> Reading:
    """How the exits are read of the state of a round, see `round_state`."""
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
    if given.among is not None:
        other["among"] = shape(given.among.shape, logits.dtype)
    if goes_without(criterion, other, late, plan.slots, len(exits.after) + 1):
        return Reading(lacking(criterion, late), True, other)
    return Reading(criterion, False, other | late)


def _time(carry: Carry, rows: Rows) -> Array:
    """The fraction of each row's tokens that is written."""
    look = lambda a: a.at[carry.of].get(mode="clip").astype(jnp.float32)
    prompt, limit = look(carry.requests.prompt), look(carry.requests.limit)
    return (rows.known.astype(jnp.float32) - prompt) / jnp.maximum(limit - prompt, 1)


def _blocks_present(plan: Plan, carry: Carry, rows: Rows) -> Int[Array, "S T"]:
    """How many blocks have keys and values of each position.

    The depth of a token is recorded with the token that it chose, one place later.
    """
    depth = carry.requests.depth.at[carry.of].get(mode="clip")
    depth = jnp.pad(depth[:, 1:], ((0, 0), (0, 1)))
    newest = jnp.arange(plan.room)[None] >= (rows.known - 1)[:, None]
    return jnp.where((depth == 0) | newest, plan.decoder.depth, depth)


def run_segments(
    plan: Plan,
    given: Given,
    cache: Cache,
    state: PyTree,
    reading: Reading,
    bounds: tuple[int, ...],
) -> Halted:
    """Runs the blocks between `bounds` as stages, each row to its exit."""
    exits = plan.exits
    assert exits is not None
    in_order = exits.executor == "masked" or (exits.executor == "auto" and plan.slots == 1)
    apply = functools.partial(_segment, plan, reading.deferred, in_order)
    steps = [
        Step(Partial(whole, (given.weights, given.among)), Partial(functools.partial(apply, *pair)))
        for pair in itertools.pairwise(bounds)
    ]
    depths, criterion = (1,) * len(steps), reading.criterion
    return run_until(tuple(steps), state, depths, criterion, exits.executor, None, False, cache)


def _segment(
    plan: Plan,
    deferred: bool,
    in_order: bool,
    first: int,
    last: int,
    weights: tuple[PyTree, Int[Array, "M"] | None],
    i: Array,
    state: PyTree,
    rows: Int[Array, "b"],
    cache: PyTree,
) -> tuple[PyTree, PyTree, PyTree]:
    """Blocks first..last-1 of some rows, and the output of the exit after them.

    Where all rows are in order, the cache is read in place; other rows are gathered from it.
    """
    positions, among = state["positions"], None if in_order else rows
    if in_order:
        positions = jnp.where((rows < plan.slots)[:, None], positions, plan.room)
    more = {"present": state["present"]} if "present" in state else {}
    h, cache = plan.decoder.blocks(
        weights[0], first, last, state["h"], positions, cache, among, **more
    )
    state = {**state, "h": h}
    return state, exit_output(plan, *weights, state, deferred), cache


def exit_output(
    plan: Plan, weights: PyTree, among: Int[Array, "M"] | None, state: PyTree, deferred: bool
) -> dict[str, PyTree]:
    """What a criterion reads of the state after some blocks, leaves `[b, ...]`."""
    hidden = _newest(state["h"], state["newest"])
    output = {**state["output"], "hidden": jax.tree.map(lambda a: a[:, 0], hidden)}
    if among is not None:
        output["among"] = plan.decoder.logits_among(weights, hidden, among)[:, 0]
    if not deferred:
        output["logits"] = plan.decoder.logits(weights, hidden)[:, 0]
    return output


def exit_logits(
    plan: Plan, given: Given, output: dict[str, PyTree], deferred: bool
) -> Float[Array, "S 1 V"]:
    """The logits of the output with which each row exited."""
    if not deferred:
        return output["logits"][:, None]
    hidden = jax.tree.map(lambda a: a[:, None], output["hidden"])
    return plan.decoder.logits(given.weights, hidden)


def _newest(h: PyTree, newest: Array) -> PyTree:
    """The state of each row's newest token, `[b, 1, ...]`."""

    def take(a: Array) -> Array:
        return jnp.take_along_axis(a, newest.reshape(-1, *[1] * (a.ndim - 1)), axis=1)

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


def propagated(
    plan: Plan,
    given: Given,
    halted: Halted,
    live: Bool[Array, "S"],
    positions: Int[Array, "S 1"],
    bounds: tuple[int, ...],
) -> Cache:
    """The cache with keys and values of exited rows in the blocks that they have not run."""
    cache = halted.side
    h = jax.tree.map(lambda a: a[:, None], halted.output["hidden"])
    for k in range(1, len(bounds) - 1):
        early = live & (halted.exit < k)
        at = jnp.where(early[:, None], positions, plan.room)
        cache = filled(plan, given, h, at, cache, (bounds[k], bounds[k + 1]), early.any())
    return cache


def filled(
    plan: Plan,
    given: Given,
    state: PyTree,
    positions: Int[Array, "S w"],
    cache: Cache,
    blocks: tuple[int, int],
    wanted: Bool[Array, ""],
) -> Cache:
    """The cache with what some blocks keep of tokens that exited before them, where it is wanted.

    It is a loop of at most one trip: XLA copies the cache through a `cond`.
    """

    def fill(carry: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        new = plan.decoder.fill(given.weights, *blocks, state, positions, carry[1])
        return jnp.bool_(False), new

    return lax.while_loop(lambda carry: carry[0], fill, (wanted, cache))[1]
