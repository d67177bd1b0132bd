"""D3: golden depths, and decoding that runs them."""

import jax
import numpy as np
import pytest

import dynexit as dx
from dynexit.decoding import generate
from dynexit.decoding.program import run_rounds
from dynexit.methods.language.d3 import d3_depths, d3_exits

V, N = 30, 3
MODEL = dx.models.CausalLM(width=16, depth=N, heads=2, context=64).build(dx.Tokens(V), V)
PARAMS = MODEL.init(jax.random.key(0))
PARAMS = PARAMS | {"embed": {"tokens": 30 * PARAMS["embed"]["tokens"]}}
PROMPTS = [[3, 1, 4, 1, 5], [9, 2]]


@pytest.mark.parametrize(
    ("depth", "alpha", "golden"),
    [
        (32, 0.99, [32, 31, 31, 30, 28, 26, 19]),
        (32, 0.98, [32, 31, 30, 28, 26, 21, 11]),
        (12, 0.95, [12, 11, 10, 9, 7, 4, 1]),
    ],
)
def test_golden_depths(depth, alpha, golden):
    assert d3_depths(depth, alpha, 51)[[0, 1, 2, 5, 10, 20, 50]].tolist() == golden
    later = d3_depths(depth, alpha, 54, start=3, least=3)
    assert later[:4].tolist() == [depth] * 4
    assert later[[3, 4, 5, 8, 13, 23, 53]].tolist() == [max(3, k) for k in golden]
    assert d3_depths(depth, 1.0, 9).tolist() == [depth] * 9


@pytest.mark.slow
def test_tokens_exit_at_their_depths_and_never_read_what_was_not_written():
    falling, after = np.array([3, 3, 2, 2, 1, 1]), (1, 2)
    run = lambda prompts, depths, limit=6: generate(
        MODEL, PARAMS, prompts, limit, exits=d3_exits(np.asarray(depths), N, after)
    )
    found = run(PROMPTS, falling)
    assert [d.tolist() for d in found.depth] == [falling.tolist()] * 2
    assert found.mean_deepest == falling.mean()  # rows of a batch exit together
    compiled = run_rounds._cache_size()
    rising = run(PROMPTS, falling[::-1])
    assert rising.depth[0].tolist() == falling[::-1].tolist()
    full = run(PROMPTS, [N] * 6)
    assert run_rounds._cache_size() == compiled  # depths are traced
    plain = generate(MODEL, PARAMS, PROMPTS, 6)
    assert [t.tolist() for t in full.tokens] == [t.tolist() for t in plain.tokens]
    assert found.tokens[0][:2].tolist() == plain.tokens[0][:2].tolist()
    filled = dx.decoding.Exits(after, d3_exits(falling, N, after).criterion, "propagate")
    with_keys = generate(MODEL, PARAMS, PROMPTS, 6, exits=filled)
    assert [t.tolist() for t in with_keys.tokens] == [t.tolist() for t in found.tokens]


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: d3_depths(4, 1.1, 5), "`alpha` must be above 0 and at most 1"),
        (lambda: d3_depths(4, 0.9, 5, start=-1), "`start` must be at least 0"),
        (lambda: d3_depths(4, 0.9, 5, least=5), "`least` must lie in 1..4"),
        (lambda: d3_exits(np.array([5, 1]), 4), "`depths` must lie in 1..4"),
        (lambda: d3_exits(np.array([0, 1]), 4), "`depths` must be at least 1"),
        (lambda: d3_exits(np.array([[1]]), 4), "`depths` must have shape"),
        (lambda: d3_exits(np.array([4, 4]), 4), "`after` must be given"),
    ],
)
def test_wrong_arguments_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
