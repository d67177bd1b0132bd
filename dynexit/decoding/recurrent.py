"""Writing with a recurrent-depth decoder: each token takes the iterations that it needs, and no row
waits for another.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynexit.core.checks import one_depth, positive_integer
from dynexit.core.types import Array, Criterion, Model, PyTree
from dynexit.decoding.cache import (
    Cache,
    Fresh,
    held,
    last_seen,
    nothing_fresh,
    read_prompts,
    seen_at,
    written,
)
from dynexit.decoding.checks import checked_prompts, checked_sampling, checked_stop
from dynexit.engine.deferred import goes_without, lacking
from dynexit.engine.executors.tiling import default_tiling
from dynexit.engine.streaming.relay import run_relay
from dynexit.layers.parts import attend
from dynexit.models.recurrent.recurrent_network import Network
from dynexit.solvers.fixed_point import relative_residual


class Decoded(NamedTuple):
    """What was written, row by row.

    Attributes:
      tokens: int32 `[B, count]`; after `stop` all are `stop`.
      steps: int32 `[B, count]`, iterations that each took; 0 after `stop`.
      log_probability: float32 `[B, count]`, ln p of each token when it was chosen, at temperature
        1; 0 after `stop`.
      nan_exits: int32 `[B]`, iterations at which what the criterion reads held a NaN; such a token
        takes all iterations.
      turns: int32 `[]`, iterations that the batch ran after the prompts.
    """

    tokens: Array
    steps: Array
    log_probability: Array
    nan_exits: Array
    turns: Array


class Writing(NamedTuple):
    """Where each row stands: in state `s` about token `position` (of prompt and answer), which is
    read as `e`, `[B, 1, D]`.

    `fresh` is what the three parts of the cache are to get, by their names; `told` what `Decoded`
    will hold of each token: itself, its iterations, its ln p.
    """

    position: Array
    made: Array
    e: Array
    s: Array
    cache: Cache
    fresh: dict[str, Fresh]
    told: tuple[Array, Array, Array]


def decode(
    model: Model,
    params: PyTree,
    prompts: Array,
    count: int,
    criterion: Criterion,
    *,
    lengths: Array | None = None,
    slots: int | None = None,
    warm: bool = False,
    keys: Array | None = None,
    temperature: Any = 1.0,
    stop: int | None = None,
) -> Decoded:
    """Continues prompts with a recurrent-depth decoder, whose criterion is asked after every
    iteration of every token.

    A token that stopped after d iterations is seen, by later ones at iteration i (from 0), as it
    was at min(i, d - 1); with fewer slots than that, as the latest iteration that fits its slot
    left it. What a row writes does not depend on its company.

    Args:
      model: of `recurrent_depth`; its steps bound every token.
      params: its parameters.
      prompts: int32 `[B, P]`, read at full depth.
      count: tokens to write, from 1; the first is that of the prompt's full depth.
      criterion: on logits `[b, V]` and "residual" `[b]`. Where it does not read logits
        (`residual_below`, `at_depth`) the coda runs only when a token is ready.
      lengths: int32 `[B]` in 1..P, tokens of each prompt; what is behind them is padding and is
        never seen. None for all P.
      slots: iterations whose keys and values are kept, in 1..steps; None for all. With 1 the memory
        is that of a plain decoder.
      warm: begin each token at the state that the one before it ended with, where False begins at
        0.
      keys: `[B]`, one a row, to draw tokens from softmax(logits / temperature); a row draws the
        same in any batch. None for the likeliest.
      temperature: above 0; of no effect without `keys`.
      stop: a token after which a row ends.

    Returns:
      `Decoded`.

    Raises:
      TypeError, ValueError: a model of another kind, arguments of wrong shape or range.

    Example:
      >>> import dynexit as dx
      >>> model = dx.models.recurrent_depth(50, width=16, heads=2, steps=8)
      >>> params = model.init(jax.random.key(0))
      >>> written = decode(model, params, jnp.array([[3, 1, 4], [1, 5, 0]]), 6, dx.criteria.residual_below(0.1))
      >>> written.tokens.shape, bool((written.steps <= 8).all())
      ((2, 6), True)

    Source: Geiping et al. 2025, arXiv 2502.05171, section 6, and its released code: cache shared
      between recurrences (`slots`),
    lookup of the latest state of a token that has fewer (their "latest-m4" with all slots),
    continuous chain of thought (`warm`). Deviations: rows of a batch exit each on their own, where
    theirs run on with the last and leave deeper keys and values; prompts of several lengths; no
    speculation.
    """
    network = getattr(model.embed, "__self__", None)
    if not isinstance(network, Network):
        raise TypeError("`model` must come from dx.models.recurrent_depth")
    steps, count = one_depth(model), positive_integer(count, "count")
    slots = steps if slots is None else min(steps, positive_integer(slots, "slots"))
    prompts, lengths = checked_prompts(prompts, lengths, network.vocabulary)
    stop = checked_stop(stop, network.vocabulary)
    temperature = checked_sampling(keys, temperature, len(prompts))
    if not isinstance(criterion, Criterion):
        raise TypeError(f"`criterion` must be a dx.Criterion, got {type(criterion).__name__}")
    return _decode(
        network,
        steps,
        count,
        slots,
        bool(warm),
        stop,
        params,
        prompts,
        lengths,
        criterion,
        keys,
        temperature,
    )


@functools.partial(jax.jit, static_argnums=range(6))
def _decode(
    network: Network,
    most: int,
    count: int,
    slots: int,
    warm: bool,
    stop: int | None,
    params: PyTree,
    prompts: Array,
    lengths: Array,
    criterion: Criterion,
    keys: Array | None,
    temperature: Array,
) -> Decoded:
    rows, length = prompts.shape
    every, room = jnp.arange(rows), length + count - 1
    shaped = jax.ShapeDtypeStruct
    residual, logits = (
        shaped((rows,), jnp.float32),
        shaped((rows, network.vocabulary), params["embed"].dtype),
    )
    lazily = goes_without(
        criterion,
        {"residual": residual},
        {"logits": logits},
        rows,
        most,
        jnp.zeros(rows, jnp.int32),
    )
    criterion = lacking(criterion, {"logits": logits}) if lazily else criterion

    def one(at: Array, past: PyTree, q: Array, k: Array, v: Array) -> tuple[Array, PyTree]:
        """The token at `at` looks at what is remembered of those before, and at itself; its own key
        and value are kept.
        """
        seen = jnp.concatenate(
            [jnp.arange(room)[None] < at[:, None], jnp.ones((at.size, 1), bool)], axis=1
        )[:, None]
        all_keys, all_values = (
            jnp.concatenate([past[0], k], axis=1),
            jnp.concatenate([past[1], v], axis=1),
        )
        return attend(q, all_keys, all_values, seen), (k, v)

    def holding(writing: Writing, part: str, *new: Any) -> Writing:
        return writing._replace(fresh=writing.fresh | {part: held(writing.fresh[part], *new)})

    def answer(writing: Writing, of: Array, to: Array) -> tuple[Array, Writing]:
        """Logits `[b, V]` of the rows `of`; the coda's keys and values are remembered of those in
        `to`.
        """
        at, cache = writing.position[of], writing.cache
        mix = functools.partial(one, at)
        u, kept = network.answer(params, writing.s[of], at[:, None], mix, last_seen(cache.coda, of))
        return network.logits(params, u[:, 0]), holding(writing, "coda", to, 0, at, kept)

    def think(i: Array, writing: Writing) -> tuple[Writing, PyTree]:
        """One iteration of the core for all rows."""
        parts = {
            name: written(getattr(writing.cache, name), fresh)
            for name, fresh in writing.fresh.items()
        }
        at, cache = writing.position, writing.cache._replace(**parts)
        mix, past = functools.partial(one, at), seen_at(cache.core, i, cache.depth)
        s, kept = network.think(params, writing.s, writing.e, at[:, None], mix, past)
        output = {"residual": relative_residual(writing.s, s)}
        writing = holding(writing._replace(s=s, cache=cache), "core", every, i % slots, at, kept)
        if not lazily:
            output["logits"], writing = answer(writing, every, every)
        return writing, output

    def ready(
        writing: Writing, output: PyTree, of: Array, valid: Array, depth: Array
    ) -> tuple[Writing, Array]:
        """The rows `of`, where `valid`, have a token."""
        to = jnp.where(valid, of, rows)
        logits, writing = answer(writing, of, to) if lazily else (output["logits"], writing)
        return begin(writing, of, to, depth, logits)

    def begin(
        writing: Writing, of: Array, to: Array, depth: Array, logits: Array
    ) -> tuple[Writing, Array]:
        """The rows `to` write a token, which took `depth` iterations, and begin to think about it."""
        at, made, cache = writing.position[of], writing.made[of], writing.cache
        token, log_p = _chosen(
            None if keys is None else jax.vmap(jax.random.fold_in)(keys[of], made),
            temperature,
            logits,
        )
        note = lambda a, value: a.at[to, made].set(value, mode="drop")
        told = jax.tree.map(note, writing.told, (token, depth, log_p))
        writing = writing._replace(
            told=told, cache=cache._replace(depth=cache.depth.at[to, at].set(depth, mode="drop"))
        )
        at, made = at + 1, made + 1
        e, kept = network.read(
            params,
            token[:, None],
            at[:, None],
            functools.partial(one, at),
            last_seen(cache.prelude, of),
        )
        put = lambda a, value: a.at[to].set(value, mode="drop")
        moved = dict(
            position=put(writing.position, at), made=put(writing.made, made), e=put(writing.e, e)
        )
        moved |= {} if warm else {"s": put(writing.s, 0.0)}
        over = (made == count) | (token == stop if stop is not None else False)
        return holding(writing._replace(**moved), "prelude", to, 0, at, kept), over

    cache, s, logits = read_prompts(network, params, prompts, lengths, most, slots, room)
    none = jnp.zeros((rows, count), jnp.int32)
    told = none if stop is None else none + stop, none, none.astype(jnp.float32)
    fresh = {name: nothing_fresh(getattr(cache, name)) for name in ("prelude", "core", "coda")}
    writing = Writing(lengths - 1, jnp.zeros(rows, jnp.int32), s, s, cache, fresh, told)
    writing, over = begin(writing, every, every, jnp.full(rows, most), logits)
    touched = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (cache.prelude, cache.coda))
    ended = run_relay(think, ready, writing, most, criterion, over, default_tiling(touched, rows))
    return Decoded(*ended.state.told, nan_exits=ended.nan_exits, turns=ended.turns)


def _chosen(keys: Array | None, temperature: Array, logits: Array) -> tuple[Array, Array]:
    """Tokens int32 `[b]` of logits `[b, V]`, drawn with `keys` or the likeliest, and ln p of each."""
    logits = logits.astype(jnp.float32)
    token = (
        logits.argmax(-1)
        if keys is None
        else jax.vmap(jax.random.categorical)(keys, logits / temperature)
    )
    token = token.astype(jnp.int32)
    return token, jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]
