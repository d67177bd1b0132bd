"""Generation with recurrent depth against recomputation of the whole text at every token."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.decoding import EarlyExit, Exits, PromptLookup, Session, decode, generate

V, N = 30, 4
SETTINGS = dx.models.RecurrentDepth(width=16, heads=2, steps=N)
MODEL = SETTINGS.build(dx.Tokens(V), V)
# noise in the weights: the text depends on its beginning, and no two logits are close
PARAMS = jax.tree.map(
    lambda a: a + 0.3 * jax.random.normal(jax.random.key(a.size), a.shape),
    jax.jit(MODEL.init)(jax.random.key(0)),
)
RANDOM = np.random.default_rng(0)
PROMPTS = [RANDOM.integers(0, V, n) for n in (3, 9, 1, 14)]
LIMITS = [7, 12, 4, 9]


@jax.jit
def logits_of(tokens):
    return dx.run_full(MODEL.steps(PARAMS), MODEL.embed(PARAMS, tokens), N)[1]["logits"]


def test_kept_iterations_and_later_ones_make_a_whole_run():
    """A chunk of a prompt, then drafts of two iterations token by token, and their verification."""
    decoder, tokens = MODEL.decoder, jnp.array([[1, 5, 2, 9, 3], [7, 0, 7, 4, 4]])
    at = lambda k, n: jnp.broadcast_to(jnp.arange(k, k + n), (2, n))

    @jax.jit
    def run(params, tokens):
        weights = decoder.unstack(params)
        cache = decoder.empty(weights, 2, 8)
        state = decoder.embed(weights, tokens[:, :3], at(0, 3))
        state, cache = decoder.blocks(weights, 0, N - 1, state, at(0, 3), cache)
        cache = decoder.fill(weights, N - 1, N, state, at(0, 3), cache)
        states = []
        for k in (3, 4):
            state = decoder.embed(weights, tokens[:, k : k + 1], at(k, 1))
            state, cache = decoder.blocks(weights, 0, 2, state, at(k, 1), cache)
            states.append(state)
        state = jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), *states)
        state, _ = decoder.blocks(weights, 2, N, state, at(3, 2), cache)
        among = decoder.logits_among(weights, state, jnp.array([4, 2]))
        return decoder.logits(weights, state), among

    logits, among = run(PARAMS, tokens)
    np.testing.assert_allclose(logits, logits_of(tokens)[:, 3:], atol=1e-4)
    np.testing.assert_allclose(among, logits[..., jnp.array([4, 2])], atol=1e-5)


def recomputed(prompt, limit):
    """Greedy text, every token from the whole text at full depth."""
    text = list(prompt)
    for _ in range(limit):
        padded = np.zeros((1, 32), np.int32)
        padded[0, : len(text)] = text
        text.append(int(logits_of(padded)[0, len(text) - 1].argmax()))
    return text[len(prompt) :]


DRAFTS = {
    "iterations": EarlyExit(2, 2),
    "short_list": EarlyExit(1, (1, 3), among=np.arange(0, V, 2)),
    "lookup": PromptLookup(3, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DRAFTS)
def test_drafts_of_fewer_iterations_do_not_change_the_text(kind):
    draft = DRAFTS[kind]
    session = Session(MODEL, PARAMS, slots=2, room=32, queue=4, chunk=4, draft=draft)
    equal = jnp.ones_like(session.given.costs)  # the most drafts while some are accepted
    session.given = session.given._replace(costs=jax.device_put(equal, equal.sharding))
    session.add(PROMPTS, LIMITS)
    session.run()
    found = session.progress()
    texts = [written.tokens.tolist() for written in found]
    assert texts == [recomputed(*both) for both in zip(PROMPTS, LIMITS, strict=True)]
    assert len({token for text in texts for token in text}) > 5
    early = {draft.exit} if isinstance(draft, EarlyExit) else set()
    assert {int(d) for written in found for d in written.depth} == {*early, N}
    assert sum(written.accepted for written in found) > 0


@pytest.mark.slow
def test_plain_generation_is_decode_at_full_depth():
    """Also on 2 x 2 devices, which split rows and heads."""
    mesh = jax.make_mesh((2, 2), ("data", "model"))
    prompt = np.stack([PROMPTS[1], PROMPTS[3][:9]])
    wanted = decode(MODEL, PARAMS, jnp.asarray(prompt), 8, dx.criteria.at_depth(N))
    for given in ({}, {"mesh": mesh}):
        found = generate(MODEL, PARAMS, prompt, 8, **given)
        np.testing.assert_array_equal(np.stack(found.tokens), wanted.tokens)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["propagate", "recompute", "skip"])
def test_a_row_exits_alone_as_in_a_batch(cache):
    exits = Exits((1, 2), dx.criteria.margin_above(0.3), cache, window=3)
    given = dict(exits=exits, chunk=4)
    batch = generate(MODEL, PARAMS, PROMPTS, LIMITS, slots=2, **given)
    assert len({int(d) for row in batch.depth for d in row}) > 1
    alone = generate(MODEL, PARAMS, PROMPTS[1:2], LIMITS[1:2], slots=1, **given)
    assert alone.tokens[0].tolist() == batch.tokens[1].tolist()
    assert alone.depth[0].tolist() == batch.depth[1].tolist()


@pytest.mark.refuses
def test_what_recurrent_depth_has_not():
    mesh = jax.make_mesh((1, 4), ("data", "model"))
    for given, words in {
        "`draft.head` must be None": dict(draft=EarlyExit(1, head={"block": {}})),
        "the 4 devices of the axis 'model' do not divide heads, 2": dict(mesh=mesh),
    }.items():
        with pytest.raises(ValueError, match=re.escape(given)):
            generate(MODEL, PARAMS, PROMPTS, 3, **words)
