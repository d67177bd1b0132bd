"""Writing with a recurrent-depth decoder: each token takes the iterations that it needs, and no row waits for another."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from dynexit.backbones.parts import attend
from dynexit.backbones.recurrent_network import Network, check_tokens
from dynexit.core.checks import one_depth, positive_integer
from dynexit.core.types import Array, Criterion, Model, PyTree
from dynexit.decoding.cache import Cache, last_seen, read_prompts, seen_at, written
from dynexit.exits.fixed_point import relative_residual
from dynexit.exits.relay import run_relay
from dynexit.exits.run import first_memory
from dynexit.exits.tiling import default_tiling


class Decoded(NamedTuple):
    """What was written, row by row.

    Attributes:
      tokens: int32 `[B, count]`; after `stop` all are `stop`.
      steps: int32 `[B, count]`, iterations that each took; 0 after `stop`.
      log_probability: float32 `[B, count]`, ln p of each token when it was chosen, at temperature 1; 0 after `stop`.
      turns: int32 `[]`, iterations that the batch ran after the prompts.
    """

    tokens: Array
    steps: Array
    log_probability: Array
    turns: Array


class Writing(NamedTuple):
    """Where each row stands: in state `s` about token `position` (of prompt and answer), which is read as `e`, `[B, 1, D]`.

    `told` is what `Decoded` will hold of each token: itself, its iterations, its ln p.
    """

    position: Array
    made: Array
    e: Array
    s: Array
    cache: Cache
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
    """Continues prompts with a recurrent-depth decoder, whose criterion is asked after every iteration of every token.

    A token that stopped after d iterations is seen, by later ones at iteration i (from 0), as it was at min(i, d - 1); with
    fewer slots than that, as the latest iteration that fits its slot left it. What a row writes does not depend on its company.

    Args:
      model: of `recurrent_depth`; its steps bound every token.
      params: its parameters.
      prompts: int32 `[B, P]`, read at full depth.
      count: tokens to write, from 1; the first is that of the prompt's full depth.
      criterion: on logits `[b, V]` and "residual" `[b]`. Where it does not read logits (`residual_below`, `at_depth`) the coda runs
        only when a token is ready.
      lengths: int32 `[B]` in 1..P, tokens of each prompt; what is behind them is padding and is never seen. None for all P.
      slots: iterations whose keys and values are kept, in 1..steps; None for all. With 1 the memory is that of a plain decoder.
      warm: begin each token at the state that the one before it ended with, where False begins at 0.
      keys: `[B]`, one a row, to draw tokens from softmax(logits / temperature); a row draws the same in any batch. None for the
        likeliest.
      temperature: above 0; of no effect without `keys`.
      stop: a token after which a row ends.

    Returns:
      `Decoded`.

    Raises:
      TypeError, ValueError: a model of another kind, arguments of wrong shape or range.

    Example:
      >>> import dynexit as dx
      >>> model = dx.backbones.recurrent_depth(50, width=16, heads=2, steps=8)
      >>> params = model.init(jax.random.key(0))
      >>> written = decode(model, params, jnp.array([[3, 1, 4], [1, 5, 0]]), 6, dx.criteria.residual_below(0.1))
      >>> written.tokens.shape, bool((written.steps <= 8).all())
      ((2, 6), True)

    Source: Geiping et al. 2025, arXiv 2502.05171, section 6, and its released code: cache shared between recurrences (`slots`),
    lookup of the latest state of a token that has fewer (their "latest-m4" with all slots), continuous chain of thought
    (`warm`). Deviations: rows of a batch exit each on their own, where theirs run on with the last and leave deeper keys and
    values; prompts of several lengths; no speculation.
    """
    network = getattr(model.embed, "__self__", None)
    if not isinstance(network, Network):
        raise TypeError("`model` must come from dx.backbones.recurrent_depth")
    prompts = jnp.asarray(prompts)
    check_tokens(prompts, "prompts")
    rows, length = prompts.shape
    lengths = jnp.full(rows, length, jnp.int32) if lengths is None else jnp.asarray(lengths)
    if lengths.shape != (rows,) or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f"`lengths` must be integers [{rows}], got {lengths.dtype}{list(lengths.shape)}")
    if not isinstance(lengths, Tracer) and ((lengths < 1) | (lengths > length)).any():
        raise ValueError(f"`lengths` must lie in 1..{length}, got {lengths.tolist()}")
    steps = one_depth(model)
    slots = steps if slots is None else min(steps, positive_integer(slots, "slots"))
    if not isinstance(temperature, Tracer) and not temperature > 0:
        raise ValueError(f"`temperature` must be above 0, got {temperature}; without `keys` the likeliest token is taken")
    if keys is not None and keys.shape != (rows,):
        raise ValueError(f"`keys` must have shape [{rows}], got {list(keys.shape)}")
    prompts, lengths = prompts.astype(jnp.int32), lengths.astype(jnp.int32)
    count = positive_integer(count, "count")
    return _decode(network, steps, count, slots, warm, stop, params, prompts, lengths, criterion, keys, jnp.float32(temperature))


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
    lazily = not _reads_logits(criterion, rows, most)

    def one(at: Array, past: PyTree, q: Array, k: Array, v: Array) -> tuple[Array, PyTree]:
        """The token at `at` looks at what is remembered of those before, and at itself; its own key and value are kept."""
        seen = jnp.concatenate([jnp.arange(room)[None] < at[:, None], jnp.ones((at.size, 1), bool)], axis=1)[:, None]
        all_keys, all_values = jnp.concatenate([past[0], k], axis=1), jnp.concatenate([past[1], v], axis=1)
        return attend(q, all_keys, all_values, seen), (k, v)

    def answer(writing: Writing, of: Array, to: Array) -> tuple[Array, Writing]:
        """Logits `[b, V]` of the rows `of`; the coda's keys and values are remembered of those in `to`."""
        at, cache = writing.position[of], writing.cache
        mix = functools.partial(one, at)
        u, kept = network.answer(params, writing.s[of], at[:, None], mix, last_seen(cache.coda, of))
        cache = cache._replace(coda=written(cache.coda, to, 0, at, kept))
        return network.logits(params, u[:, 0]), writing._replace(cache=cache)

    def think(i: Array, writing: Writing) -> tuple[Writing, PyTree]:
        """One iteration of the core for all rows."""
        at, cache = writing.position, writing.cache
        mix, past = functools.partial(one, at), seen_at(cache.core, i, cache.depth)
        s, kept = network.think(params, writing.s, writing.e, at[:, None], mix, past)
        cache = cache._replace(core=written(cache.core, every, i % slots, at, kept))
        output = {"residual": relative_residual(writing.s, s)}
        writing = writing._replace(s=s, cache=cache)
        if not lazily:
            output["logits"], writing = answer(writing, every, every)
        return writing, output

    def ready(writing: Writing, output: PyTree, of: Array, valid: Array, depth: Array) -> tuple[Writing, Array]:
        """The rows `of`, where `valid`, have a token."""
        to = jnp.where(valid, of, rows)
        logits, writing = answer(writing, of, to) if lazily else (output["logits"], writing)
        return begin(writing, of, to, depth, logits)

    def begin(writing: Writing, of: Array, to: Array, depth: Array, logits: Array) -> tuple[Writing, Array]:
        """The rows `to` write a token, which took `depth` iterations, and begin to think about it."""
        at, made, cache = writing.position[of], writing.made[of], writing.cache
        token, log_p = _chosen(None if keys is None else jax.vmap(jax.random.fold_in)(keys[of], made), temperature, logits)
        note = lambda a, value: a.at[to, made].set(value, mode="drop")
        told = jax.tree.map(note, writing.told, (token, depth, log_p))
        depths = cache.depth.at[to, at].set(depth, mode="drop")
        at, made = at + 1, made + 1
        e, kept = network.read(params, token[:, None], at[:, None], functools.partial(one, at), last_seen(cache.prelude, of))
        cache = cache._replace(prelude=written(cache.prelude, to, 0, at, kept), depth=depths)
        put = lambda a, value: a.at[to].set(value, mode="drop")
        s = writing.s if warm else put(writing.s, 0.0)
        over = (made == count) | (token == stop if stop is not None else False)
        return Writing(put(writing.position, at), put(writing.made, made), put(writing.e, e), s, cache, told), over

    cache, s, logits = read_prompts(network, params, prompts, lengths, most, slots, room)
    none = jnp.zeros((rows, count), jnp.int32)
    told = none if stop is None else none + stop, none, none.astype(jnp.float32)
    writing = Writing(lengths - 1, jnp.zeros(rows, jnp.int32), s, s, cache, told)
    writing, over = begin(writing, every, every, jnp.full(rows, most), logits)
    touched = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (cache.prelude, cache.coda))
    ended = run_relay(think, ready, writing, most, criterion, over, default_tiling(touched, rows))
    return Decoded(*ended.state.told, turns=ended.turns)


def _chosen(keys: Array | None, temperature: Array, logits: Array) -> tuple[Array, Array]:
    """Tokens int32 `[b]` of logits `[b, V]`, drawn with `keys` or the likeliest, and ln p of each."""
    logits = logits.astype(jnp.float32)
    token = logits.argmax(-1) if keys is None else jax.vmap(jax.random.categorical)(keys, logits / temperature)
    token = token.astype(jnp.int32)
    return token, jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]


def _reads_logits(criterion: Criterion, rows: int, depth: int) -> bool:
    """Whether the criterion reads more than the residual; traced, not run."""
    residual = jax.ShapeDtypeStruct((rows,), jnp.float32)
    try:
        memory = first_memory(criterion, rows, {"residual": residual}, depth)
        jax.eval_shape(criterion.update, jax.ShapeDtypeStruct((rows,), jnp.int32), {"residual": residual}, memory)
    except (KeyError, ValueError):
        return True
    return False
