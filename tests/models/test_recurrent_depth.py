"""The recurrent-depth decoder against the equations in numpy; causality, initial scales, a bounded
state.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx

V, D, HEADS, L = 11, 8, 2, 5
MODEL = dx.models.RecurrentDepth(width=D, heads=HEADS, steps=4, core=2).build(dx.Tokens(V), V)
PARAMS = MODEL.init(jax.random.key(0))
# scales and biases away from their beginnings, so that a forgotten one shows
PARAMS = jax.tree.map(
    lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape), PARAMS
)
TOKENS = jnp.array([[1, 5, 2, 9, 3], [0, 0, 7, 7, 10]])


def rms(x, p):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * p["scale"]


def turned(x):
    """Rotary positions of `[L, d]`, pair by pair."""
    out, half = np.array(x), x.shape[1] // 2
    for t in range(len(x)):
        for c in range(half):
            angle = t * 50_000.0 ** (-c / half)
            a, b = x[t, c], x[t, c + half]
            out[t, c], out[t, c + half] = (
                a * math.cos(angle) - b * math.sin(angle),
                a * math.sin(angle) + b * math.cos(angle),
            )
    return out


def sandwich(p, x):
    """One block on one row `[L, D]`."""
    h = rms(x, p["norm1"])
    heads = lambda name: h @ p[name]["kernel"].reshape(D, D)
    q, k = (heads(name) + p[name]["bias"].ravel() for name in ("query", "key"))
    v, d = heads("value"), D // HEADS
    mixed = np.zeros_like(x)
    for head in range(HEADS):
        part = slice(head * d, (head + 1) * d)
        qh, kh = turned(q[:, part]), turned(k[:, part])
        for t in range(len(x)):
            scores = np.array([qh[t] @ kh[s] / math.sqrt(d) for s in range(t + 1)])
            weights = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            mixed[t, part] = weights @ v[: t + 1, part]
    x = rms(x + mixed @ p["out"]["kernel"].reshape(D, D), p["norm2"])
    h = rms(x, p["norm3"])
    gate = h @ p["gate"]["kernel"]
    return rms(
        x + (gate / (1 + np.exp(-gate)) * (h @ p["up"]["kernel"])) @ p["down"]["kernel"], p["norm4"]
    )


def logits(tokens, r):
    """The whole network on one row, as in the paper's equations: its answer and its state."""
    p = jax.tree.map(np.asarray, PARAMS)
    at = lambda tree, i: jax.tree.map(lambda a: a[i], tree)
    e = sandwich(at(p["prelude"], 0), math.sqrt(D) * p["embed"][tokens])
    s = np.zeros_like(e)
    for _ in range(r):
        s = np.concatenate([s, e], axis=1) @ p["block"]["adapter"]
        for i in range(2):
            s = sandwich(at(p["block"]["core"], i), s)
    u = sandwich(at(p["coda"], 0), rms(s, p["norm"]))
    return rms(u, p["norm"]) @ p["embed"].T, s


def test_every_exit_is_the_equations():
    found = dx.run_all(MODEL.steps(PARAMS), MODEL.embed(PARAMS, TOKENS), MODEL.depth)
    for row in range(2):
        before = np.zeros((L, D))
        for r in range(1, 5):
            wanted, state = logits(np.asarray(TOKENS[row]), r)
            np.testing.assert_allclose(found["logits"][r - 1, row], wanted, rtol=2e-4, atol=2e-5)
            moved = np.linalg.norm(state - before, axis=1) / np.linalg.norm(state, axis=1)
            np.testing.assert_allclose(found["residual"][r - 1, row], moved, rtol=1e-3)
            before = state


def test_a_warm_start_goes_on_from_where_a_run_ended():
    step = MODEL.steps(PARAMS)
    ended, _ = dx.run_full(step, MODEL.embed(PARAMS, TOKENS), 2)
    warm = dx.run_all(step, MODEL.embed(PARAMS, {"tokens": TOKENS, "h": ended["h"]}), 2)
    cold = dx.run_all(step, MODEL.embed(PARAMS, TOKENS), 4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b[2:], rtol=1e-5, atol=1e-6), warm, cold
    )


def test_no_token_sees_a_later_one():
    changed = TOKENS.at[0, 3].set(4)
    a, b = (
        dx.run_full(MODEL.steps(PARAMS), MODEL.embed(PARAMS, t), MODEL.depth)[1]["logits"]
        for t in (TOKENS, changed)
    )
    np.testing.assert_array_equal(a[0, :3], b[0, :3])
    assert np.abs(a[0, 3:] - b[0, 3:]).max() > 1e-3


def test_the_state_stays_bounded_for_many_iterations():
    long = dx.models.RecurrentDepth(width=D, heads=HEADS, steps=64, core=2).build(dx.Tokens(V), V)
    state, _ = dx.run_full(long.steps(PARAMS), long.embed(PARAMS, TOKENS), 64)
    scale = np.abs(PARAMS["block"]["core"]["norm4"]["scale"][-1])
    assert np.sqrt((state["h"] ** 2).mean(-1)).max() <= scale.max() * 1.001, (
        "the last norm bounds it"
    )


def test_initial_scales():
    wide = (
        dx.models.RecurrentDepth(
            width=64, heads=4, steps=4, prelude=2, core=4, coda=2, mean_steps=32
        )
        .build(dx.Tokens(64), 64)
        .init(jax.random.key(1))
    )
    deviation, core = math.sqrt(2 / (5 * 64)), wide["block"]["core"]
    for kernel in (
        wide["embed"],
        wide["block"]["adapter"],
        core["query"]["kernel"],
        core["up"]["kernel"],
    ):
        np.testing.assert_allclose(kernel.std(), deviation, rtol=0.05)
    for name in ("out", "down"):
        np.testing.assert_allclose(
            core[name]["kernel"].std(), deviation / math.sqrt(2 * 132), rtol=0.05
        )
    assert set(core["value"]) == set(core["gate"]) == {"kernel"} and set(core["query"]) == {
        "kernel",
        "bias",
    }


@pytest.mark.parametrize(
    "call,words",
    [
        (
            lambda: dx.models.RecurrentDepth(width=6, heads=2, steps=2).build(dx.Tokens(5), 5),
            "width must be a multiple of 2 x heads, got 6 and 2",
        ),
        (
            lambda: dx.models.RecurrentDepth(width=8, heads=2, steps=0).build(dx.Tokens(5), 5),
            "steps must be at least 1",
        ),
        (
            lambda: dx.models.RecurrentDepth(width=8, heads=2).build(dx.Tokens(5), 6),
            "classes must be among the 5 tokens, got 6",
        ),
        (
            lambda: MODEL.embed(PARAMS, jnp.zeros((2, 5))),
            r"`inputs` must be integers \[B, L\], got float32\[2, 5\]",
        ),
        (
            lambda: MODEL.embed(PARAMS, {"tokens": TOKENS, "positions": TOKENS}),
            "`inputs` must be tokens or a dict with 'tokens' and optionally 'h', 'mask', got",
        ),
        (
            lambda: MODEL.embed(PARAMS, {"tokens": TOKENS, "h": jnp.zeros((2, 5, 4))}),
            r'`inputs\["h"\]` must have shape \[2, 5, 8\]',
        ),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()
