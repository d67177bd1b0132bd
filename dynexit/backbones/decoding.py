"""Writing with a recurrent-depth decoder: each token takes the iterations that it needs, and no row waits for another.

Every row is at a token and an iteration of its own. A turn is one iteration of the core for all rows; a row whose token is ready
begins its next one in the same turn, so the turns follow the mean number of iterations and not the largest of each position.

    turn    1      2      3      4      5      6
    row 0   a a1   a a2   b b1   c c1   c c2   c c3
    row 1   p p1   q q1   q q2   q q3   q q4   r r1
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from dynexit.backbones.decoding_memory import Memory, last_seen, read_prompts, seen_at, written
from dynexit.backbones.parts import attend
from dynexit.backbones.recurrent_network import Network, check_tokens
from dynexit.core.checks import one_depth, positive_integer
from dynexit.core.types import Array, Criterion, Model, PyTree
from dynexit.exits import loops
from dynexit.exits.fixed_point import relative_residual
from dynexit.exits.rows import read_exit
from dynexit.exits.run import first_memory


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
    """Where each row stands: at token `position` (of prompt and answer), with `made` tokens written and `age` iterations done."""

    position: Array
    made: Array
    age: Array
    done: Array
    e: Array
    s: Array
    rule: PyTree
    memory: Memory
    decoded: Decoded


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
    temperature: Any = 0.0,
    keys: Array | None = None,
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
      temperature: 0 for the likeliest token, above it draws from softmax(logits / temperature), which wants `keys`.
      keys: `[B]`, one a row; each token's is folded in, so that a row draws the same in any batch.
      stop: a token after which a row ends.

    Returns:
      `Decoded`.

    Raises:
      TypeError, ValueError: a model of another kind, arguments of wrong shape or range, `temperature` without `keys`.

    Example:
      >>> model = recurrent_depth(50, width=16, heads=2, steps=8)
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
    if not isinstance(temperature, Tracer) and not temperature >= 0:
        raise ValueError(f"`temperature` must be at least 0, got {temperature}")
    if keys is None and not (isinstance(temperature, (int, float)) and temperature == 0):
        raise ValueError("`keys` must be given, one a row, to draw tokens at a temperature above 0")
    if keys is not None and keys.shape != (rows,):
        raise ValueError(f"`keys` must have shape [{rows}], got {list(keys.shape)}")
    if keys is None:
        keys = jax.random.split(jax.random.key(0), rows)  # for the shapes; temperature 0 draws nothing
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
    keys: Array,
    temperature: Array,
) -> Decoded:
    rows, length = prompts.shape
    every, here = jnp.arange(rows), jnp.arange(length + count - 1)[None]
    answer = {
        "logits": jax.ShapeDtypeStruct((rows, network.vocabulary), params["embed"].dtype),
        "residual": jax.ShapeDtypeStruct((rows,), jnp.float32),
    }
    first = first_memory(criterion, rows, answer, most)
    lazily = not _reads_logits(criterion, first, answer)

    def one(at: Array, past: PyTree, q: Array, k: Array, v: Array) -> tuple[Array, PyTree]:
        """The token at `at` looks at what is remembered of those before, and at itself; its own key and value are kept."""
        seen = jnp.concatenate([here < at[:, None], jnp.ones((rows, 1), bool)], axis=1)[:, None]
        all_keys, all_values = jnp.concatenate([past[0], k], axis=1), jnp.concatenate([past[1], v], axis=1)
        return attend(q, all_keys, all_values, seen), (k, v)

    def logits_of(at: Array, s: Array, memory: Memory) -> tuple[Array, PyTree]:
        u, kept = network.answer(params, s, at[:, None], functools.partial(one, at), last_seen(memory.coda))
        return network.logits(params, u[:, 0]), kept

    def begin(writing: Writing, leaves: Array, logits: Array) -> Writing:
        """Rows in `leaves` write a token and begin to think about it; the others stand where they were."""
        position, made, age, done, e, s, rule, memory, decoded = writing
        token, log_p = _chosen(jax.vmap(jax.random.fold_in)(keys, made), temperature, logits)
        put = lambda a, value: a.at[every, jnp.where(leaves, made, count)].set(value, mode="drop")
        tokens, steps, log_ps, turns = decoded
        decoded = Decoded(put(tokens, token), put(steps, age), put(log_ps, log_p), turns)
        depth = memory.depth.at[every, jnp.where(leaves, position, here.size)].set(age, mode="drop")
        one_more = leaves.astype(jnp.int32)
        made, position = made + one_more, position + one_more
        done = done | leaves & ((made == count) | (token == stop if stop is not None else False))
        look = functools.partial(one, position), last_seen(memory.prelude)
        read, kept = network.read(params, token[:, None], position[:, None], *look)
        prelude = written(memory.prelude, 0, jnp.where(leaves & ~done, position, here.size), kept)
        pick = lambda a, b: jnp.where(leaves.reshape(-1, *[1] * (a.ndim - 1)), a, b)
        age, e, rule = jax.tree.map(pick, (jnp.zeros_like(age), read, first), (age, e, rule))
        s = s if warm else pick(jnp.zeros_like(s), s)
        memory = memory._replace(prelude=prelude, depth=depth)
        return Writing(position, made, age, done, e, s, rule, memory, decoded)

    def turn(writing: Writing) -> Writing:
        at, i, memory = writing.position, writing.age, writing.memory
        mix = functools.partial(one, at)
        s, kept = network.think(params, writing.s, writing.e, at[:, None], mix, seen_at(memory.core, i, memory.depth))
        memory = memory._replace(core=written(memory.core, i % slots, at, kept))
        output = {"residual": relative_residual(writing.s, s)}
        if not lazily:
            output["logits"], coda = logits_of(at, s, memory)
        leaves, rule, _ = read_exit(criterion, i, i == most - 1, output, writing.rule)
        leaves = leaves & ~writing.done
        decoded = writing.decoded._replace(turns=writing.decoded.turns + 1)
        writing = writing._replace(age=i + 1, s=s, rule=rule, memory=memory, decoded=decoded)

        def ready(writing: Writing) -> Writing:
            logits, kept = logits_of(at, s, writing.memory) if lazily else (output["logits"], coda)
            coda_ = written(writing.memory.coda, 0, jnp.where(leaves, at, here.size), kept)
            return begin(writing._replace(memory=writing.memory._replace(coda=coda_)), leaves, logits)

        return loops.maybe(leaves.any(), ready, lambda writing: writing, writing)

    memory, s, logits = read_prompts(network, params, prompts, lengths, most, slots, here.size)
    none = jnp.zeros((rows, count), jnp.int32)
    decoded = Decoded(none if stop is None else none + stop, none, none.astype(jnp.float32), jnp.int32(0))
    zero = jnp.zeros(rows, jnp.int32)
    writing = Writing(lengths - 1, zero, zero + most, zero > 0, s, s, first, memory, decoded)
    writing = begin(writing, zero == 0, logits)
    return loops.while_loop(lambda writing: ~writing.done.all(), turn, writing).decoded


def _chosen(keys: Array, temperature: Array, logits: Array) -> tuple[Array, Array]:
    """Tokens int32 `[B]` of logits `[B, V]`, and ln p of each."""
    logits = logits.astype(jnp.float32)
    drawn = jax.vmap(jax.random.categorical)(keys, logits / jnp.where(temperature > 0, temperature, 1.0))
    token = jnp.where(temperature > 0, drawn, logits.argmax(-1)).astype(jnp.int32)
    return token, jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=1)[:, 0]


def _reads_logits(criterion: Criterion, memory: PyTree, answer: dict[str, Any]) -> bool:
    """Whether the criterion reads more than the residual; traced, not run."""
    residual = answer["residual"]
    try:
        jax.eval_shape(criterion.update, jax.ShapeDtypeStruct(residual.shape, jnp.int32), {"residual": residual}, memory)
    except (KeyError, ValueError):
        return True
    return False
