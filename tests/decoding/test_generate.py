"""Generation against recomputation of the whole text at every token."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.decoding import EarlyExit, PromptLookup, Sampling, Session, generate, stream
from dynexit.decoding.plan import FIRST_RATE
from dynexit.decoding.program import run_rounds

V, N = 30, 2
SETTINGS = dx.models.CausalLM(width=16, depth=N, heads=2, kv_heads=1, window=6, context=64)
MODEL = SETTINGS.build(dx.Tokens(V), V)
# large weights: the text depends on its beginning, and no two logits are close
PARAMS = MODEL.init(jax.random.key(0))
PARAMS = PARAMS | {
    "blocks": jax.tree.map(lambda a: 3 * a if a.ndim > 2 else a, PARAMS["blocks"]),
    "embed": {"tokens": 30 * PARAMS["embed"]["tokens"]},
}
RANDOM = np.random.default_rng(0)
PROMPTS = [RANDOM.integers(0, V, n) for n in (3, 9, 1, 21, 5)]
LIMITS = [7, 12, 4, 9, 12]
HEAD = {"block": jax.tree.map(lambda a: a[0], PARAMS["blocks"])}


@jax.jit
def logits_of(tokens):
    return dx.run_full(MODEL.steps(PARAMS), MODEL.embed(PARAMS, tokens), N)[1]["logits"]


def recomputed(prompt, limit):
    """Greedy text and ln p of each token, every token from the whole text."""
    text, log_p = list(prompt), []
    for _ in range(limit):
        padded = np.zeros((1, 48), np.int32)
        padded[0, : len(text)] = text
        logits = logits_of(padded)[0, len(text) - 1]
        text.append(int(logits.argmax()))
        log_p.append(float(jax.nn.log_softmax(logits)[text[-1]]))
    return text[len(prompt) :], log_p


WANTED = [recomputed(*both) for both in zip(PROMPTS, LIMITS, strict=True)]
DRAFTS = {
    "none": None,
    "first_block": EarlyExit(1, 2),
    "short_list": EarlyExit(1, (1, 3), among=np.arange(0, V, 2)),
    "head": EarlyExit(1, 2, head=HEAD),
    "lookup": PromptLookup(3, 2),
}


@pytest.mark.parametrize("draft", DRAFTS)
def test_greedy_text_is_that_of_recomputation(draft):
    slots = None if draft == "none" else 2
    given = dict(draft=DRAFTS[draft], slots=slots, chunk=4, log_probabilities=True)
    found = generate(MODEL, PARAMS, PROMPTS, LIMITS, **given)
    for tokens, log_p, wanted in zip(found.tokens, found.log_probability, WANTED, strict=True):
        assert tokens.tolist() == wanted[0]
        np.testing.assert_allclose(log_p, wanted[1], atol=1e-4)
    assert found.reason == ["length"] * 5
    depths = {int(d) for row in found.depth for d in row}
    assert depths <= ({N} if draft in ("none", "lookup") else {DRAFTS[draft].exit, N})
    accepted = sum(int((row < N).sum()) for row in found.depth)
    assert draft == "lookup" or accepted == found.accepted.sum()
    assert (found.rounds + found.accepted >= LIMITS).all()


def test_slots_are_refilled():
    """Rows of geometric lengths: the queue needs about the mean, not the sum of the longest."""
    limits = [2, 16, 2, 2, 2, 2, 2, 2]
    prompts = [PROMPTS[0]] * 8
    found = generate(MODEL, PARAMS, prompts, limits, slots=2)
    assert found.total_rounds == 16
    assert [len(t) for t in found.tokens] == limits


def test_a_token_is_streamed_as_it_is_written():
    tokens = list(stream(MODEL, PARAMS, PROMPTS, LIMITS, slots=2, chunk=4))
    for row, (text, _) in enumerate(WANTED):
        assert [t.token for t in tokens if t.row == row] == text
    assert [t.row for t in tokens if t.last] != sorted(t.row for t in tokens if t.last)


@pytest.mark.slow
def test_stop_tokens_and_strings():
    text = WANTED[1][0]
    end = text.index(text[5])
    found = generate(MODEL, PARAMS, PROMPTS, LIMITS, stop=[29, text[5]], draft=EarlyExit(1, 2))
    assert found.tokens[1].tolist() == text[: end + 1] and found.reason[1] == "stop"
    decode = lambda ids: "".join(chr(97 + i) for i in ids)
    string = decode(text[3:5])
    found = generate(MODEL, PARAMS, PROMPTS, LIMITS, stop_strings=[string], decode=decode)
    assert decode(found.tokens[1].tolist()).index(string) == len(found.tokens[1]) - 2
    assert found.reason[1] == "stop"


def test_padding_on_either_side():
    left, right = np.zeros((2, 9), int), np.zeros((2, 9), int)
    for k in range(2):
        left[k, 9 - len(PROMPTS[k]) :] = right[k, : len(PROMPTS[k])] = PROMPTS[k]
    lengths = np.array([[3], [9]])
    place = np.arange(9)[None]
    for prompts, mask in ((left, place >= 9 - lengths), (right, place < lengths)):
        found = generate(MODEL, PARAMS, prompts, LIMITS[:2], mask=mask)
        assert [t.tolist() for t in found.tokens] == [w[0] for w in WANTED[:2]]


@pytest.mark.slow
def test_a_row_samples_the_same_tokens_in_any_batch():
    given = dict(sampling=Sampling(1.5, top_k=20), key=jax.random.key(3))
    whole = generate(MODEL, PARAMS, PROMPTS, LIMITS, **given)
    queue = generate(MODEL, PARAMS, PROMPTS, LIMITS, slots=2, **given)
    for a, b in zip(whole.tokens, queue.tokens, strict=True):
        assert a.tolist() == b.tolist()
    assert any(a.tolist() != w[0] for a, w in zip(whole.tokens, WANTED, strict=True))


def chi_square(counts, p):
    """The statistic and its degrees of freedom, over tokens of at least 5 expected counts."""
    expected = p * counts.sum()
    many = expected >= 5
    observed = np.append(counts[many], counts[~many].sum())
    expected = np.append(expected[many], max(expected[~many].sum(), 1e-9))
    return ((observed - expected) ** 2 / expected).sum(), many.sum()


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.slow) for k in ("first_block", "short_list", "lookup")],
)
def test_drafts_keep_the_distribution(kind):
    """The second token, which a draft may propose, against the exact marginal distribution."""
    rows, prompt = 1500, PROMPTS[0][:2]
    first = np.asarray(
        jax.nn.softmax(logits_of(jnp.pad(jnp.array([prompt]), ((0, 0), (0, 46))))[0, 1])
    )
    texts = np.concatenate([np.tile(prompt, (V, 1)), np.arange(V)[:, None]], axis=1)
    padded = np.pad(texts, ((0, 0), (0, 45)))
    second = np.asarray(jax.nn.softmax(logits_of(padded)[:, 2]))
    found = generate(
        MODEL, PARAMS, [prompt] * rows, 2, sampling=Sampling(), key=jax.random.key(7),
        draft=DRAFTS[kind], slots=500,
    )  # fmt: skip
    counts = np.bincount([int(t[1]) for t in found.tokens], minlength=V)
    statistic, freedom = chi_square(counts, first @ second)
    limit = freedom + 2.33 * np.sqrt(2 * freedom) + 2  # about the 99th percentile
    assert statistic < limit
    wrong, _ = chi_square(counts, second.mean(0))
    assert wrong > limit  # the control: another distribution is told apart


@pytest.mark.parametrize(("slots", "room"), [(1, 64), (4, 64), (4, 384)], ids=str)
def test_the_cache_is_not_copied_in_the_loop(slots, room):
    """Not with one slot either, where each update is a single token, nor where it is read in parts."""
    session = Session(MODEL, PARAMS, slots=slots, room=room, queue=4, draft=EarlyExit(1, 2))
    given = session.plan, session.given, session.carry, jnp.int32(3)
    program = run_rounds.lower(*given).compile().as_text()
    cache = "f32[" + ",".join(map(str, session.carry.cache[0][0].shape)) + "]"
    assert cache in program
    bodies = [part for part in program.split("\n\n") if not part.lstrip().startswith("ENTRY")]
    copies = [
        line
        for part in bodies
        for line in part.splitlines()
        if re.search(rf"= {re.escape(cache)}\S* copy\(", line)
    ]
    assert copies == []


def test_a_row_for_which_nothing_is_found_counts_as_refused():
    session = Session(MODEL, PARAMS, slots=1, room=64, queue=4, draft=PromptLookup(3))
    session.given = session.given._replace(costs=jnp.array([1e9, 1.0]))  # always with drafts
    session.add([np.array([4])], [8])  # no token occurs twice before the second round
    session.run(1)
    (found,) = session.progress()
    assert found.drafted == 0 and len(found.tokens) == 1
    assert float(session.carry.rate[0]) < 0.9 * FIRST_RATE


def test_nothing_compiles_anew_in_a_bucket():
    generate(MODEL, PARAMS, PROMPTS[:3], 5)
    before = run_rounds._cache_size()
    shorter = [p[:k] for p, k in zip(PROMPTS, (2, 7, 1), strict=False)]
    for count in (3, 4):
        generate(MODEL, PARAMS, shorter, count)
    assert run_rounds._cache_size() == before


@pytest.mark.parametrize("kind", ["none", "first_block"])
def test_devices_write_the_text_of_one(kind):
    """Rows over "data", heads over "model": devices along "data" end apart."""
    settings = dx.models.CausalLM(width=16, depth=N, heads=2, context=64)
    model = settings.build(dx.Tokens(V), V)
    params = model.init(jax.random.key(0))
    params["embed"] = {"tokens": 30 * params["embed"]["tokens"]}
    mesh = jax.make_mesh((2, 2), ("data", "model"))
    given = dict(draft=DRAFTS[kind], slots=2, chunk=4)
    one = generate(model, params, PROMPTS, LIMITS, **given)
    several = generate(model, params, PROMPTS, LIMITS, mesh=mesh, **given)
    for a, b in zip(one.tokens, several.tokens, strict=True):
        assert a.tolist() == b.tolist()
    assert several.total_rounds < one.total_rounds


@pytest.mark.refuses
def test_heads_that_do_not_divide_are_named():
    mesh = jax.make_mesh((2, 2), ("data", "model"))
    with pytest.raises(ValueError, match="kv_heads, 1"):
        generate(MODEL, PARAMS, PROMPTS, 3, mesh=mesh)


def test_requests_may_be_added_while_others_run():
    session = Session(MODEL, PARAMS, slots=2, room=48, queue=4, chunk=4)
    first = session.add(PROMPTS[:2], LIMITS[:2])
    session.run(3)
    (later,) = session.add([PROMPTS[4]], [LIMITS[4]])
    session.run()
    found = {w.request: w for w in session.progress()}
    for request, wanted in ((first[0], 0), (first[1], 1), (later, 4)):
        assert found[request].tokens.tolist() == WANTED[wanted][0]
    session.release(first[0])
    (again,) = session.add([PROMPTS[2]], [LIMITS[2]])
    session.run()
    assert {w.request: w.tokens.tolist() for w in session.progress()}[again] == WANTED[2][0]


def test_a_request_can_be_ended():
    session = Session(MODEL, PARAMS, slots=1, room=48, queue=4)
    one, two = session.add(PROMPTS[:2], LIMITS[:2])
    session.run(2)
    session.end(one)
    session.run()
    found = {w.request: w for w in session.progress()}
    assert len(found[one].tokens) == 2 and found[one].reason == "stop"
    assert found[two].tokens.tolist() == WANTED[1][0]


def test_a_session_is_compiled_once():
    before = run_rounds._cache_size()
    draft = PromptLookup(tokens=1)  # its costs are measured with the same program
    session = Session(MODEL, PARAMS, slots=1, room=48, queue=3, draft=draft)
    one, _ = session.add(PROMPTS[:2], LIMITS[:2])
    session.run(1)
    session.add([PROMPTS[2]], [LIMITS[2]])
    session.run(1)
    session.end(one)
    session.run(1)
    session.release(one)
    session.run()
    assert run_rounds._cache_size() <= before + 1


def test_a_request_may_have_a_key_of_its_own():
    """Its tokens are the same alone and beside other requests."""
    drawn = Sampling(temperature=2.0)
    session = Session(MODEL, PARAMS, slots=2, room=48, queue=4)
    keys = [jax.random.key(k) for k in (5, 6, 5)]
    one, two, three = session.add([PROMPTS[0]] * 3, [6] * 3, [drawn] * 3, keys=keys)
    session.run()
    found = {w.request: w.tokens.tolist() for w in session.progress()}
    assert found[one] == found[three] != found[two]


WRONG = {
    "prompts[1]": (dict(prompts=[[1], []]), ValueError),
    "tokens in 0..29": (dict(prompts=[[30]]), ValueError),
    "context of 64": (dict(prompts=[[1] * 60]), ValueError),
    "sequence of integers": (dict(prompts=["text"]), TypeError),
    "max_tokens": (dict(max_tokens=0), ValueError),
    "draft.exit": (dict(draft=EarlyExit(2)), ValueError),
    "draft.among": (dict(draft=EarlyExit(1, among=[30])), ValueError),
    "`draft` must be": (dict(draft=2), TypeError),
    "`key`": (dict(sampling=Sampling()), ValueError),
    "top_p": (dict(sampling=Sampling(top_p=0.0), key=jax.random.key(0)), ValueError),
    "`decode`": (dict(stop_strings=["a"]), TypeError),
    "`stop` must be a token in 0..29, got 30": (dict(stop=30), ValueError),
    "of the default generator": (
        dict(sampling=Sampling(), key=jax.random.key(0, impl="rbg")),
        TypeError,
    ),
    "padding between": (dict(prompts=[[1, 2, 3]], mask=[[True, False, True]]), ValueError),
}


@pytest.mark.refuses
@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message):
    arguments, error = WRONG[message]
    given = {"prompts": [[1, 2]], "max_tokens": 5, **arguments}
    with pytest.raises(error, match=re.escape(message)):
        generate(MODEL, PARAMS, **given)
    with pytest.raises(TypeError, match="`decoder`"):
        generate(dx.models.Mlp(width=8, depth=2).build((4,), 2), {}, [[1]])


def test_looked_up_copies_what_followed():
    from dynexit.decoding.drafts import looked_up

    text = jnp.array([[1, 2, 3, 4, 1, 2, 0, 0], [5, 6, 7, 8, 9, 1, 0, 0]])
    found, many = looked_up(text, jnp.array([6, 6]), 3, 4)
    assert found[0].tolist() == [3, 4, 1, 2] and many.tolist() == [4, 0]


def test_filters():
    from dynexit.decoding.sampling import probabilities, rules_of

    z = jnp.log(jnp.array([[[0.5, 0.25, 0.15, 0.1]]]))
    p = lambda **given: probabilities(z, rules_of([Sampling(**given)])[0])[0, 0]
    chex.assert_trees_all_close(p(top_k=2), jnp.array([2 / 3, 1 / 3, 0, 0]), atol=1e-6)
    chex.assert_trees_all_close(p(top_p=0.6), jnp.array([2 / 3, 1 / 3, 0, 0]), atol=1e-6)
    chex.assert_trees_all_close(p(top_p=0.4), jnp.array([1.0, 0, 0, 0]), atol=1e-6)
    chex.assert_trees_all_close(p(min_p=0.4), jnp.array([2 / 3, 1 / 3, 0, 0]), atol=1e-6)
    chex.assert_trees_all_close(p(temperature=0.0), jnp.array([1.0, 0, 0, 0]), atol=1e-6)
