"""Tokens that exit early while decoding: a batch equals single rows in tokens, depths and cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.decoding import EarlyExit, Exits, Session, generate

V, N = 30, 3
SETTINGS = dx.models.CausalLM(width=16, depth=N, heads=2, kv_heads=1, context=64)
MODEL = SETTINGS.build(dx.Tokens(V), V)


def large_weights(model):
    """The text depends on its beginning, and no two logits are close."""
    params = model.init(jax.random.key(0))
    return params | {
        "blocks": jax.tree.map(lambda a: 3 * a if a.ndim > 2 else a, params["blocks"]),
        "embed": {"tokens": 30 * params["embed"]["tokens"]},
    }


PARAMS = large_weights(MODEL)
RANDOM = np.random.default_rng(1)
PROMPTS = [RANDOM.integers(0, V, n) for n in (3, 8, 1, 5)]
LIMIT = 8


def likely(threshold):
    return dx.criteria.max_probability_above(threshold)


def run(prompts, exits, limit=LIMIT):
    session = Session(MODEL, PARAMS, slots=len(prompts), room=32, queue=len(prompts), exits=exits)
    session.add(prompts, [limit] * len(prompts))
    session.run()
    written = session.progress()
    rows = [
        [np.asarray(a[k]) for pair in session.carry.cache for a in pair]
        for k in range(len(prompts))
    ]
    return written, rows, session


def rerun(batch, window=3):
    """Blocks that tokens ran again, counted row by row."""
    total = 0
    for prompt, written in zip(PROMPTS, batch, strict=True):
        pending = len(prompt) if len(prompt) <= window else 1  # a short prompt runs in the window
        for place, depth in enumerate(written.depth):
            total += (pending - 1) * depth if place else 0
            pending = 1 if depth == N else pending + 1
    return total


@pytest.mark.parametrize("executor", ["masked", "compacted"])
@pytest.mark.parametrize("rule", ["propagate", "recompute", "skip"])
def test_a_batch_equals_single_rows(rule, executor):
    if executor == "compacted" and rule != "propagate":
        pytest.skip("the executors differ in nothing that the rule changes")
    exits = Exits((1, 2), likely(0.6), rule, window=3, executor=executor)
    batch, rows, session = run(PROMPTS, exits)
    depths = {int(d) for w in batch for d in w.depth}
    assert depths == {1, 2, 3}  # the threshold tells tokens apart
    assert session.work().reruns == (rerun(batch) if rule == "recompute" else 0)
    for k, prompt in enumerate(PROMPTS[:2]):
        (alone,), (row,), _ = run([prompt], Exits((1, 2), likely(0.6), rule, window=3))
        assert batch[k].tokens.tolist() == alone.tokens.tolist()
        assert batch[k].depth.tolist() == alone.depth.tolist()
        final = len(prompt) + LIMIT - 1  # the last token is not run
        for a, b in zip(rows[k], row, strict=True):
            np.testing.assert_allclose(a[:, :final], b[:, :final], atol=5e-5)
    assert session.carry.deepest / session.carry.rounds >= np.mean([w.depth.mean() for w in batch])


@pytest.mark.parametrize(
    "rule", ["propagate", *[pytest.param(r, marks=pytest.mark.slow) for r in ("recompute", "skip")]]
)
def test_no_early_exit_is_plain_decoding(rule):
    plain = generate(MODEL, PARAMS, PROMPTS, LIMIT)
    never = generate(MODEL, PARAMS, PROMPTS, LIMIT, exits=Exits((1, 2), likely(1.0), rule))
    for a, b in zip(plain.tokens, never.tokens, strict=True):
        assert a.tolist() == b.tolist()
    assert never.mean_deepest == N


@pytest.mark.slow
def test_propagated_keys_come_from_the_state_at_the_exit():
    """A token forced to exit after block 1, against keys and values computed by hand."""
    prompt = PROMPTS[0]
    (written,), (row,), _ = run([prompt], Exits((1,), likely(0.0)), limit=2)
    assert written.depth.tolist() == [1, 1]
    decoder, weights = MODEL.decoder, MODEL.decoder.unstack(PARAMS)
    tokens = jnp.asarray(prompt)[None]
    positions = jnp.arange(len(prompt))[None]
    h = decoder.embed(weights, tokens, positions)
    _, cache = decoder.blocks(
        weights, 0, N, h[:, :-1], positions[:, :-1], decoder.empty(weights, 1, 32)
    )
    h, cache = decoder.blocks(weights, 0, 1, h[:, -1:], positions[:, -1:], cache)
    cache = decoder.fill(weights, 1, N, h, positions[:, -1:], cache)
    for a, b in zip(row, [a[0] for pair in cache for a in pair], strict=True):
        np.testing.assert_allclose(a[:, : len(prompt)], b[:, : len(prompt)], atol=1e-5)


@pytest.mark.slow
def test_recomputed_keys_are_exact():
    """After the text is written, the cache of complete tokens equals one full pass."""
    prompt = PROMPTS[1]
    (written,), (row,), session = run([prompt], Exits((1, 2), likely(0.4), "recompute", window=3))
    assert {1, 2} & set(written.depth.tolist())
    text = np.concatenate([prompt, written.tokens])
    decoder, weights = MODEL.decoder, MODEL.decoder.unstack(PARAMS)
    whole = int(session.carry.filled[0])
    assert len(prompt) <= whole < len(text)
    positions = jnp.arange(whole)[None]
    h = decoder.embed(weights, jnp.asarray(text[:whole])[None], positions)
    _, cache = decoder.blocks(weights, 0, N, h, positions, decoder.empty(weights, 1, 32))
    for a, b in zip(row, [a[0] for pair in cache for a in pair], strict=True):
        np.testing.assert_allclose(a[:, :whole], b[:, :whole], atol=1e-5)


def test_thresholds_do_not_compile_anew():
    from dynexit.decoding.program import run_rounds

    run(PROMPTS[:2], Exits((1,), likely(0.5)))
    before = run_rounds._cache_size()
    run(PROMPTS[:2], Exits((1,), likely(0.7)))
    assert run_rounds._cache_size() == before


@pytest.mark.slow
def test_a_criterion_without_logits_reads_them_once():
    settled = dx.criteria.saturation_above(0.5)
    found = generate(MODEL, PARAMS, PROMPTS, LIMIT, exits=Exits((1, 2), settled))
    assert {int(d) for row in found.depth for d in row} <= {2, 3}  # never at the first exit


def among(output):
    return output["among"]


@pytest.mark.slow
@pytest.mark.parametrize("park", [0, 2])
def test_a_short_list_decides_as_the_whole_list_in_its_order(park):
    """All tokens in another order decide as "logits"; the text comes from one readout a token."""
    order = np.random.default_rng(0).permutation(V)
    criterion = dx.criteria.max_probability_above(0.6, read=among)
    exits = Exits((1, 2), criterion, among=order, park=park)
    found = generate(MODEL, PARAMS, PROMPTS, LIMIT, exits=exits)
    wanted = generate(MODEL, PARAMS, PROMPTS, LIMIT, exits=Exits((1, 2), likely(0.6)))
    for a, b, c, d in zip(found.tokens, wanted.tokens, found.depth, wanted.depth, strict=True):
        assert a.tolist() == b.tolist() and c.tolist() == d.tolist()
    assert found.work.readouts == found.work.tokens < wanted.work.readouts == found.work.probes
    assert found.work.among_cost == pytest.approx(found.work.readout_cost, rel=0.1)
    short = Exits((1, 2), criterion, among=order[:5], park=park)
    depths = generate(MODEL, PARAMS, PROMPTS, LIMIT, exits=short).depth
    assert np.concatenate(depths).mean() < np.concatenate(found.depth).mean()


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("exits", "message"),
    [
        (Exits((3,), likely(0.5)), "exits.after"),
        (Exits((), likely(0.5)), "exits.after"),
        (Exits((2, 1), likely(0.5)), "exits.after"),
        (Exits((1,), likely([0.5, 0.5])), "exits.criterion"),
        (Exits((1,), likely(0.5), "drop"), "exits.cache"),
        (Exits((1,), likely(0.5), among=[V]), "exits.among"),
        (Exits((1,), likely(0.5), "recompute", window=0), "exits.window"),
    ],
)
def test_wrong_exits_are_named(exits, message):
    with pytest.raises(ValueError, match=message):
        generate(MODEL, PARAMS, PROMPTS, LIMIT, exits=exits)
    with pytest.raises(ValueError, match="drafts are verified"):
        generate(
            MODEL, PARAMS, PROMPTS, 2, exits=Exits((1,), likely(0.5)), draft=EarlyExit(1)
        )  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [{"executor": "compacted"}, {"park": 2}, {"cache": "recompute"}],
    ids=lambda options: next(iter(options.values())),
)
def test_devices_exit_apart_with_heads_over_the_axis_model(options):
    """Two devices for the rows, two for the heads."""
    settings = dx.models.CausalLM(width=16, depth=N, heads=2, context=64)
    model = settings.build(dx.Tokens(V), V)
    params = large_weights(model)
    exits = Exits((1, 2), likely(0.6), **options)
    one = generate(model, params, PROMPTS, LIMIT, exits=exits)
    assert {int(d) for depths in one.depth for d in depths} == {1, 2, N}
    mesh = jax.make_mesh((2, 2), ("data", "model"))
    several = generate(model, params, PROMPTS, LIMIT, exits=exits, mesh=mesh)
    for found, wanted in ((several.tokens, one.tokens), (several.depth, one.depth)):
        assert [a.tolist() for a in found] == [a.tolist() for a in wanted]
