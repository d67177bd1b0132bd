"""Decoding with a recurrent-depth model: a number of iterations per token and per row."""

import functools
from typing import NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp

from dynexit.core.checks import positive_integer
from dynexit.core.shapes import AnyArray, Array, Float, Int, Key, PyTree
from dynexit.core.stages import one_depth
from dynexit.core.types import Criterion, Model
from dynexit.decoding.checks import checked_prompts, checked_sampling, checked_stop
from dynexit.decoding.recurrent.cache import (
    Cache,
    cached,
    empty_cache,
    prefill,
    rows_of,
    visible_at,
    with_exits,
    with_row,
)
from dynexit.engine.deferred import goes_without, lacking
from dynexit.engine.executors.tiling import default_tiling
from dynexit.engine.rows import has_nan
from dynexit.engine.streaming.relay import run_relay
from dynexit.models.recurrent.recurrent_decoder import RecurrentDecoder
from dynexit.models.recurrent.recurrent_network import Network
from dynexit.solvers.fixed_point import relative_residual


class Decoded(NamedTuple):
    """The generated tokens of each row.

    Attributes:
      tokens: int32 `[B, count]`; all entries after `stop` are `stop`.
      steps: int32 `[B, count]`, iterations of each token; 0 after `stop`.
      log_probability: float32 `[B, count]`, ln p of each token in nats, at temperature 1 and given
        the tokens before it; 0 after `stop`.
      nan_exits: int32 `[B]`, iterations at which what the criterion reads held a NaN; such a token
        takes all iterations.
      turns: int32 `[]`, iterations of the whole batch after the prompts.
    """

    tokens: Int[Array, "B count"]
    steps: Int[Array, "B count"]
    log_probability: Float[Array, "B count"]
    nan_exits: Int[Array, "B"]
    turns: Int[Array, ""]


class Carry(NamedTuple):
    """The carry of the decoding loop, for B rows and M prompts.

    Attributes:
      position: int32 `[B]`, the current token of each row, counted over prompt and continuation.
      made: int32 `[B]`, tokens generated.
      e: `[B, 1, D]`, the prelude's output for the current token.
      s: `[B, 1, D]`, the state of the current token.
      cache: keys and values of the tokens up to the current one.
      prompt: int32 `[B]`, the prompt that each row continues; M for a row that has ended.
      waiting: int32 `[]`, the next prompt of the queue.
      written: tokens, iterations and ln p of the tokens generated, each `[M, count]`.
      nan_exits: int32 `[M]`, as in `Decoded`.
    """

    position: Int[Array, "B"]
    made: Int[Array, "B"]
    e: Float[Array, "B 1 D"]
    s: Float[Array, "B 1 D"]
    cache: Cache
    prompt: Int[Array, "B"]
    waiting: Int[Array, ""]
    written: tuple[Int[Array, "M count"], Int[Array, "M count"], Float[Array, "M count"]]
    nan_exits: Int[Array, "M"]


def decode(
    model: Model,
    params: PyTree,
    prompts: Int[AnyArray, "B P"],
    count: int,
    criterion: Criterion,
    *,
    lengths: Int[AnyArray, "B"] | None = None,
    slots: int | None = None,
    rows: int | None = None,
    warm: bool = False,
    keys: Key[Array, "B"] | None = None,
    temperature: float | Float[AnyArray, ""] = 1.0,
    stop: SupportsIndex | None = None,
) -> Decoded:
    """Continues prompts with a recurrent-depth model; the criterion is applied at every iteration.

    The attention of a later token at iteration i (from 0) reads a token that exited after d
    iterations at iteration min(i, d - 1). With fewer slots it reads the latest iteration in that
    slot. The tokens of a row do not depend on the other rows of the batch.

    Args:
      model: from `recurrent_depth`; its steps bound the iterations of every token.
      params: its parameters.
      prompts: int32 `[B, P]`, read at full depth.
      count: number of tokens to generate, at least 1; the first follows from the prompt at full
        depth.
      criterion: on logits `[b, V]` and "residual" `[b]`. If it does not read logits
        (`residual_below`, `at_depth`), the coda runs only when a token exits.
      lengths: int32 `[B]` in 1..P, tokens of each prompt; what follows is padding and is never
        attended to. None for P.
      slots: iterations whose keys and values are kept, in 1..steps; None for all. With 1 the cache
        has the size of that of a plain decoder.
      rows: prompts that run at once; each of the others waits for a row whose prompt has ended, and
        is then read at full depth. None for all B.
      warm: whether a token starts from the final state of the token before it instead of 0.
      keys: random keys `[B]`, one per row, to sample tokens from softmax(logits / temperature); a
        row samples the same tokens in any batch. None for greedy decoding.
      temperature: above 0; without effect if `keys` is None.
      stop: token that ends a row.

    Returns:
      A `Decoded`.

    Raises:
      TypeError: `model` has no decoder of this kind, `criterion` is not a `Criterion`, or `keys` or
        `stop` have a wrong type.
      ValueError: an argument has a wrong shape or is out of range.

    Example:
      >>> import dynexit as dx
      >>> model = dx.models.RecurrentDepth(width=16, heads=2, steps=8).build(dx.Tokens(50), 50)
      >>> params = model.init(jax.random.key(0))
      >>> prompts = jnp.array([[3, 1, 4], [1, 5, 0]])
      >>> decoded = decode(model, params, prompts, 6, dx.criteria.residual_below(0.1))
      >>> decoded.tokens.shape, bool((decoded.steps <= 8).all())
      ((2, 6), True)

    Source: Geiping et al. 2025, arXiv 2502.05171, section 6, and its released code: a cache shared
      between iterations (`slots`), lookup of the latest state of a token that has fewer iterations
      (their "latest-m4" with all slots), continuous chain of thought (`warm`). Deviations: rows
      exit one by one, where theirs iterate until the last row exits and store deeper keys and
      values; prompts of several lengths; no speculation (`generate` does).
    """
    decoder = model.decoder
    if not isinstance(decoder, RecurrentDecoder):
        raise TypeError(
            "`model.decoder` must be that of dx.models.RecurrentDepth, "
            f"got {type(decoder).__name__}"
        )
    network = decoder.network
    steps, count = one_depth(model), positive_integer(count, "count")
    slots = steps if slots is None else min(steps, positive_integer(slots, "slots"))
    prompts, lengths = checked_prompts(prompts, lengths, network.vocabulary)
    rows = len(prompts) if rows is None else min(len(prompts), positive_integer(rows, "rows"))
    stop = checked_stop(stop, network.vocabulary)
    temperature = checked_sampling(keys, temperature, len(prompts))
    if not isinstance(criterion, Criterion):
        raise TypeError(f"`criterion` must be a dx.Criterion, got {type(criterion).__name__}")
    static = network, steps, count, slots, rows, bool(warm), stop
    return _decode(*static, params, prompts, lengths, criterion, keys, temperature)


@functools.partial(jax.jit, static_argnums=range(7))
def _decode(
    network: Network,
    most: int,
    count: int,
    slots: int,
    rows: int,
    warm: bool,
    stop: int | None,
    params: PyTree,
    prompts: Array,
    lengths: Array,
    criterion: Criterion,
    keys: Array | None,
    temperature: Array,
) -> Decoded:
    queue, length = prompts.shape
    every, room = jnp.arange(rows), length + count - 1
    params = network.unstack(params)
    residual = jax.ShapeDtypeStruct((rows,), jnp.float32)
    logits = jax.ShapeDtypeStruct((rows, network.vocabulary), params["embed"].dtype)
    shapes = {"residual": residual}, {"logits": logits}
    deferred = goes_without(criterion, *shapes, rows, most, jnp.zeros(rows, jnp.int32))
    criterion = lacking(criterion, {"logits": logits}) if deferred else criterion

    def read_logits(carry: Carry, of: Array, to: Array) -> tuple[Array, Carry]:
        """Logits `[b, V]` of the rows `of`; the coda writes its keys and values for `to`."""
        position, cache = carry.position[of], carry.cache
        mix = cached(position, to, 0, functools.partial(rows_of, of=of))
        u, coda = network.answer(params, carry.s[of], position[:, None], mix, cache.coda)
        return network.logits(params, u[:, 0]), carry._replace(cache=cache._replace(coda=coda))

    def iterate(i: Array, carry: Carry) -> tuple[Carry, PyTree]:
        """One iteration of the core for all rows."""
        position, cache = carry.position, carry.cache
        look = functools.partial(visible_at, i=i, position=position, depth=cache.depth, steps=most)
        mix = cached(position, every, i % slots, look)
        s, core = network.think(params, carry.s, carry.e, position[:, None], mix, cache.core)
        output = {"residual": relative_residual(carry.s, s)}
        carry = carry._replace(s=s, cache=cache._replace(core=core))
        if not deferred:
            output["logits"], carry = read_logits(carry, every, every)
        nan = has_nan(output).astype(jnp.int32)
        nan_exits = carry.nan_exits.at[carry.prompt].add(nan, mode="drop")
        return carry._replace(nan_exits=nan_exits), output

    def exit_rows(
        carry: Carry, output: PyTree, of: Array, valid: Array, depth: Array
    ) -> tuple[Carry, Array]:
        """Ends the current token of the rows `of` that are `valid`, not padding rows."""
        to = jnp.where(valid, of, rows)
        logits, carry = read_logits(carry, of, to) if deferred else (output["logits"], carry)
        carry, ended = next_token(carry, of, to, depth, logits)
        return refill(carry, of, valid & ended)

    def next_token(
        carry: Carry, of: Array, to: Array, depth: Array, logits: Array
    ) -> tuple[Carry, Array]:
        """Chooses a token for the rows `to`, records it and reads it as the current token."""
        position, made, prompt = carry.position[of], carry.made[of], carry.prompt[of]
        row_keys = None if keys is None else jax.vmap(jax.random.fold_in)(keys[prompt], made)
        token, log_p = _chosen(row_keys, temperature, logits)
        record = lambda a, value: a.at[jnp.where(to < rows, prompt, queue), made].set(
            value, mode="drop"
        )
        written = jax.tree.map(record, carry.written, (token, depth, log_p))
        cache = with_exits(carry.cache, of, to, position, depth, most)
        position, made = position + 1, made + 1
        mix = cached(position, to, 0, functools.partial(rows_of, of=of))
        e, prelude = network.read(params, token[:, None], position[:, None], mix, cache.prelude)
        put = lambda a, value: a.at[to].set(value, mode="drop")
        new = {"position": put(carry.position, position), "made": put(carry.made, made)}
        new |= {"e": put(carry.e, e)} | ({} if warm else {"s": put(carry.s, 0.0)})
        carry = carry._replace(**new, written=written, cache=cache._replace(prelude=prelude))
        return carry, (made == count) | (token == stop if stop is not None else False)

    def refill(carry: Carry, of: Array, ended: Array) -> tuple[Carry, Array]:
        """Gives waiting prompts to the rows `of` that have `ended`; returns those without one."""
        if rows < queue:
            some = lambda state: state[1].any() & (state[0].waiting < queue)
            carry, ended = jax.lax.while_loop(
                some, functools.partial(take_prompt, of), (carry, ended)
            )
        idle = jnp.where(ended, of, rows)
        return carry._replace(prompt=carry.prompt.at[idle].set(queue, mode="drop")), ended

    def take_prompt(of: Array, state: tuple[Carry, Array]) -> tuple[Carry, Array]:
        """Reads the next prompt of the queue in the first row that has ended."""
        carry, ended = state
        place, n = jnp.argmax(ended), carry.waiting
        row, one = of[place], lambda a: jax.lax.dynamic_slice_in_dim(a, n, 1)
        cache, s, logits = prefill(network, params, one(prompts), one(lengths), most, empty(1))
        put = lambda a, value: a.at[row].set(value)
        carry = carry._replace(
            position=put(carry.position, lengths[n] - 1),
            made=put(carry.made, 0),
            s=put(carry.s, s[0]),
            cache=with_row(carry.cache, row, cache),
            prompt=put(carry.prompt, n),
            waiting=n + 1,
        )
        carry, again = next_token(carry, row[None], row[None], jnp.full(1, most), logits)
        return carry, ended.at[place].set(again[0])

    empty = lambda rows: empty_cache(network, params, rows, most, slots, room)
    cache, s, logits = prefill(network, params, prompts[:rows], lengths[:rows], most, empty(rows))
    none = jnp.zeros((queue, count), jnp.int32)
    written = none if stop is None else none + stop, none, none.astype(jnp.float32)
    begun = lengths[:rows] - 1, jnp.zeros(rows, jnp.int32), s, s, cache, every, jnp.int32(rows)
    carry = Carry(*begun, written, jnp.zeros(queue, jnp.int32))
    carry, ended = next_token(carry, every, every, jnp.full(rows, most), logits)
    carry, ended = refill(carry, every, ended)
    tiling = default_tiling((cache.prelude, cache.coda), rows)
    final = run_relay(iterate, exit_rows, carry, most, criterion, ended, tiling)
    return Decoded(*final.state.written, nan_exits=final.state.nan_exits, turns=final.turns)


def _chosen(keys: Array | None, temperature: Array, logits: Array) -> tuple[Array, Array]:
    """Tokens int32 `[b]` for logits `[b, V]`, sampled if there are keys, and ln p of each."""
    logits = logits.astype(jnp.float32)
    if keys is None:
        token = logits.argmax(-1)
    else:
        token = jax.vmap(jax.random.categorical)(keys, logits / temperature)
    token = token.astype(jnp.int32)
    return token, jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]
