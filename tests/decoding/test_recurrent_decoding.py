"""Decoding against full recomputation and against a NumPy loop that keeps every iteration."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.decoding.recurrent.decode import _chosen, _decode, decode

V, D, HEADS, STEPS = 11, 8, 2, 4
MODEL = dx.models.RecurrentDepth(width=D, heads=HEADS, steps=STEPS, core=2).build(dx.Tokens(V), V)
PARAMS = jax.jit(MODEL.init)(jax.random.key(0))
PARAMS = jax.tree.map(
    lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), PARAMS
)
PROMPTS = jnp.array([[1, 5, 2, 9, 3], [0, 0, 7, 7, 10], [4, 2, 2, 8, 1]])
NEVER = dx.criteria.at_depth(STEPS)
EARLY = dx.criteria.residual_below(0.25)
# reads the logits, so the coda runs at every iteration
SETTLED = dx.criteria.divergence_below(0.02)


def rms(x, p):
    return x / np.sqrt((x * x).mean() + 1e-6) * p["scale"]


def rotated(x, t):
    """Rotary embedding of position t, one head `[d]`."""
    a, b = np.split(x, 2)
    angle = t * 50_000.0 ** (-np.arange(len(a)) / len(a))
    return np.concatenate(
        [a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)]
    )


def block(p, x, t, before):
    """One block on token t, given `before(s)`, the (k, v) of token s < t; also returns its own."""
    h = rms(x, p["norm1"])
    heads = lambda a: a.reshape(HEADS, -1)
    project = lambda name: h @ p[name]["kernel"].reshape(D, D)
    q, k = (
        np.stack([rotated(a, t) for a in heads(project(n) + p[n]["bias"].ravel())])
        for n in ("query", "key")
    )
    own = k, heads(project("value"))
    pairs = [before(s) for s in range(t)] + [own]
    mixed = []
    for head in range(HEADS):
        scores = np.array([q[head] @ pair[0][head] for pair in pairs]) / math.sqrt(D // HEADS)
        weights = np.exp(scores - scores.max())
        mixed.append(
            sum(w * pair[1][head] for w, pair in zip(weights / weights.sum(), pairs, strict=True))
        )
    x = rms(x + np.concatenate(mixed) @ p["out"]["kernel"].reshape(D, D), p["norm2"])
    h = rms(x, p["norm3"])
    gate = h @ p["gate"]["kernel"]
    return rms(
        x + (gate / (1 + np.exp(-gate)) * (h @ p["up"]["kernel"])) @ p["down"]["kernel"], p["norm4"]
    ), own


def reference(prompt, count, threshold, slots, warm):
    """Tokens, iterations and ln p of one row; a dictionary keeps every iteration of every token."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), PARAMS)
    at = lambda tree, i: jax.tree.map(lambda a: a[i], tree)
    memory, depth, state = {}, {}, None

    def visible(s, t, i):
        """The iteration of token s that token t reads at its iteration i."""
        if t < len(prompt):
            return i  # within the prompt all tokens are at the same iteration
        slot = min(i, depth[s] - 1) % slots
        return max(j for j in range(depth[s]) if j % slots == slot)

    def through(part, blocks, x, t, i=None):
        for number in range(blocks):
            past = lambda s, number=number: memory[
                part, number, s, None if i is None else visible(s, t, i)
            ]
            x, memory[part, number, t, i] = block(
                at(p["block"]["core"] if part == "core" else p[part], number), x, t, past
            )
        return x

    tokens, found = list(prompt), []
    for t in range(len(prompt) + count - 1):
        prompted, e = (
            t < len(prompt),
            through("prelude", 1, math.sqrt(D) * p["embed"][tokens[t]], t),
        )
        state = state if warm and not prompted else np.zeros(D)
        for i in range(STEPS):
            new = through("core", 2, np.concatenate([state, e]) @ p["block"]["adapter"], t, i)
            moved, state = np.linalg.norm(new - state) / np.linalg.norm(new), new
            if not prompted and moved < threshold:
                break
        depth[t] = i + 1
        logits = rms(through("coda", 1, rms(state, p["norm"]), t), p["norm"]) @ p["embed"].T
        if t >= len(prompt) - 1:
            token = int(logits.argmax())
            tokens.append(token)
            found.append((token, depth[t], logits[token] - np.log(np.exp(logits).sum())))
    return [np.array(a) for a in zip(*found, strict=True)]


@pytest.mark.parametrize(
    "threshold,slots,warm",
    [
        (0.25, 4, False),
        (0.25, 1, False),
        pytest.param(0.25, 2, False, marks=pytest.mark.slow),
        (0.3, 4, True),
        (0.0, 4, False),
    ],
)
def test_matches_a_loop_that_keeps_every_iteration(threshold, slots, warm):
    found = decode(
        MODEL, PARAMS, PROMPTS, 7, dx.criteria.residual_below(threshold), slots=slots, warm=warm
    )
    for row, prompt in enumerate(PROMPTS.tolist()):
        tokens, steps, log_p = reference(prompt, 7, threshold, slots, warm)
        np.testing.assert_array_equal(found.tokens[row], tokens)
        np.testing.assert_array_equal(found.steps[row], steps)
        np.testing.assert_allclose(found.log_probability[row], log_p, rtol=1e-4, atol=1e-5)
    depths = set(found.steps[:, 1:].ravel().tolist())
    assert threshold == 0 or len(depths) > 1, "the tokens must differ in depth"


def test_full_depth_matches_recomputation_of_the_whole_sequence():
    found = decode(MODEL, PARAMS, PROMPTS, 6, NEVER)
    tokens = jnp.zeros((3, 10), jnp.int32).at[:, :5].set(PROMPTS)
    run = lambda tokens: dx.run_full(MODEL.steps(PARAMS), MODEL.embed(PARAMS, tokens), STEPS)
    whole = jax.jit(lambda tokens: run(tokens)[1]["logits"])
    for n in range(6):
        logits = whole(tokens)[:, 4 + n]  # later tokens are not attended to
        np.testing.assert_array_equal(found.tokens[:, n], logits.argmax(-1))
        np.testing.assert_allclose(
            found.log_probability[:, n], jax.nn.log_softmax(logits).max(-1), rtol=1e-4
        )
        tokens = tokens.at[:, 5 + n].set(found.tokens[:, n], mode="drop")
    assert found.turns == 5 * STEPS


@pytest.mark.parametrize(
    "rule,slots", [(EARLY, 4), pytest.param(SETTLED, 1, marks=pytest.mark.slow)]
)
def test_a_row_does_not_depend_on_other_rows_or_padding(rule, slots):
    lengths = jnp.array([5, 3, 5])
    keys = jax.random.split(jax.random.key(3), 3)
    settings = dict(slots=slots, temperature=0.7)
    together = decode(MODEL, PARAMS, PROMPTS, 8, rule, lengths=lengths, keys=keys, **settings)
    for row in range(3):
        alone = decode(
            MODEL,
            PARAMS,
            PROMPTS[row : row + 1, : lengths[row]],
            8,
            rule,
            keys=keys[row : row + 1],
            **settings,
        )
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])
        np.testing.assert_array_equal(together.steps[row], alone.steps[0])
        np.testing.assert_allclose(
            together.log_probability[row], alone.log_probability[0], rtol=1e-4, atol=1e-6
        )


def test_turns_are_the_largest_sum_of_a_row_not_the_sum_of_the_largest():
    found = decode(MODEL, PARAMS, PROMPTS, 30, SETTLED, keys=jax.random.split(jax.random.key(0), 3))
    steps = np.asarray(found.steps[:, 1:])
    assert found.turns == steps.sum(axis=1).max()
    assert found.turns < steps.max(axis=0).sum()


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, STEPS])
def test_prompts_that_wait_take_the_rows_of_those_that_have_ended(slots):
    prompts = jnp.concatenate([PROMPTS, PROMPTS[::-1, ::-1]])
    settings = dict(lengths=jnp.array([5, 3, 5, 1, 4, 2]), stop=3, slots=slots)
    settings |= dict(keys=jax.random.split(jax.random.key(3), 6))
    alone = decode(MODEL, PARAMS, prompts, 6, EARLY, **settings)
    queued = decode(MODEL, PARAMS, prompts, 6, EARLY, rows=2, **settings)
    np.testing.assert_array_equal(queued.tokens, alone.tokens)
    np.testing.assert_array_equal(queued.steps, alone.steps)
    np.testing.assert_allclose(queued.log_probability, alone.log_probability, rtol=1e-4, atol=1e-6)
    sums = np.asarray(alone.steps[:, 1:]).sum(axis=1)
    assert len(set(sums.tolist())) > 2, "the prompts must end at different turns"
    ends = [0, 0]  # the turn at which each row is free: it takes the next prompt
    for turns in sums:
        row = int(np.argmin(ends))
        ends[row] += int(turns)
    assert queued.turns == max(ends)
    damaged = PARAMS | {"embed": PARAMS["embed"].at[10].set(jnp.nan)}
    alone, queued = (
        decode(MODEL, damaged, prompts, 6, EARLY, **settings, **rows) for rows in ({}, {"rows": 2})
    )
    assert queued.nan_exits.tolist() == alone.nan_exits.tolist() and (queued.nan_exits > 0).any()


def test_the_stop_token_ends_a_row_and_not_the_others():
    free = decode(MODEL, PARAMS, PROMPTS, 8, EARLY)
    stop = int(free.tokens[0, 2])
    found = decode(MODEL, PARAMS, PROMPTS, 8, EARLY, stop=stop)
    for row in range(3):
        wanted = free.tokens[row].tolist()
        end = wanted.index(stop) + 1 if stop in wanted else 8
        assert found.tokens[row].tolist() == wanted[:end] + [stop] * (8 - end)
        assert found.steps[row].tolist() == free.steps[row, :end].tolist() + [0] * (8 - end)


@pytest.mark.compiled
@pytest.mark.parametrize("rows, slots, rule", [(1, 1, EARLY), (6, STEPS, EARLY), (6, 1, SETTLED)])
def test_no_iteration_copies_the_cache(rows, slots, rule):
    """All computations but the entry belong to a loop; those of the prompts have another length."""
    room = 12
    params = jax.eval_shape(MODEL.init, jax.random.key(0))
    prompts = jax.ShapeDtypeStruct((rows, room - 2), jnp.int32)
    run = jax.jit(lambda params, prompts: decode(MODEL, params, prompts, 3, rule, slots=slots))
    program = run.lower(params, prompts).compile().as_text()
    loops = program[: program.index("\nENTRY ")]
    for kept in {1, slots}:  # of prelude and coda, and of the core
        whole = rf"f32\[{rows},({kept},)?{HEADS},{room},{D // HEADS}\]"
        assert re.search(whole, loops) and not re.search(rf"= {whole}\S* copy\(", loops)


@pytest.mark.slow
def test_new_thresholds_lengths_and_equal_models_do_not_recompile():
    again = dx.models.RecurrentDepth(width=D, heads=HEADS, steps=STEPS, core=2).build(
        dx.Tokens(V), V
    )
    size = _decode._cache_size()
    found = decode(MODEL, PARAMS, PROMPTS, 4, dx.criteria.residual_below(0.25))
    first = _decode._cache_size()
    other = decode(again, PARAMS, PROMPTS, 4, dx.criteria.residual_below(0.3), temperature=0.5)
    for lengths in ([5, 3, 5], [1, 2, 4]):
        decode(MODEL, PARAMS, PROMPTS, 4, EARLY, lengths=jnp.array(lengths))
    assert size <= first == _decode._cache_size() and other.turns <= found.turns
    lengths, settings = (
        jnp.array([5, 3, 5]),
        dict(keys=jax.random.split(jax.random.key(3), 3), stop=np.int32(3)),
    )
    call = lambda p, n, t: decode(MODEL, p, PROMPTS, 4, EARLY, lengths=n, temperature=t, **settings)
    wanted = call(PARAMS, lengths, 0.7)
    np.testing.assert_array_equal(
        jax.jit(call)(PARAMS, lengths, jnp.float32(0.7)).tokens, wanted.tokens
    )
    jax.eval_shape(lambda p: call(p, lengths, jnp.float32(0.7)), PARAMS)


def test_a_nan_is_counted_and_prevents_an_early_exit():
    damaged = PARAMS | {"embed": PARAMS["embed"].at[10].set(jnp.nan)}  # a token of the prompt
    found, finite = (decode(MODEL, p, PROMPTS[1:2], 4, EARLY) for p in (damaged, PARAMS))
    assert found.nan_exits.tolist() == [3 * STEPS] and finite.nan_exits.tolist() == [0]
    assert (found.steps == STEPS).all()


def test_sampling_follows_the_distribution():
    keys, logits = jax.random.split(jax.random.key(1), 4000), jnp.array([0.0, 1.0, -1.0, 3.0])
    tokens, log_p = _chosen(keys, jnp.float32(2.0), jnp.broadcast_to(logits, (4000, 4)))
    share = np.bincount(tokens, minlength=4) / 4000
    np.testing.assert_allclose(share, jax.nn.softmax(logits / 2.0), atol=4 * 0.5 / math.sqrt(4000))
    np.testing.assert_allclose(log_p, jax.nn.log_softmax(logits)[tokens], rtol=1e-5)


KEYS = jax.random.split(jax.random.key(0), 3)


@pytest.mark.parametrize(
    "changes, error, argument",
    [
        (
            {"model": dx.models.DeepThinking(width=8, steps=3).build((8, 1), 2)},
            TypeError,
            "model.decoder",
        ),
        ({"model": MODEL._replace(decoder=None)}, TypeError, "model.decoder"),
        ({"prompts": PROMPTS[0]}, ValueError, "prompts"),
        ({"prompts": PROMPTS.at[0, 0].set(V)}, ValueError, "prompts"),
        ({"prompts": PROMPTS[:0]}, ValueError, "prompts"),
        ({"count": 0}, ValueError, "count"),
        ({"criterion": 0.1}, TypeError, "criterion"),
        ({"lengths": jnp.array([1, 2])}, ValueError, "lengths"),
        ({"lengths": jnp.array([1, 6, 2])}, ValueError, "lengths"),
        ({"slots": 0}, ValueError, "slots"),
        ({"rows": 0}, ValueError, "rows"),
        ({"temperature": 0.0}, ValueError, "temperature"),
        ({"temperature": jnp.ones(3)}, ValueError, "temperature"),
        ({"stop": 3.0}, TypeError, "stop"),
        ({"stop": V}, ValueError, "stop"),
        ({"keys": [1, 2, 3]}, TypeError, "keys"),
        ({"keys": KEYS[:2]}, ValueError, "keys"),
    ],
)
def test_invalid_arguments(changes, error, argument):
    arguments = dict(model=MODEL, params=PARAMS, prompts=PROMPTS, count=2, criterion=NEVER)
    with pytest.raises(error, match=f"^`{argument}`"):
        decode(**arguments | changes)
