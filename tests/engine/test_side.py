"""State addressed by row: a step with a key/value cache, under every schedule, against a loop over
rows in numpy.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx

N, B, L, D, C = 4, 7, 6, 8, 5  # blocks, rows, places in the cache, width, classes
EXECUTORS = [
    ("compacted", None),
    ("compacted", 1),
    ("compacted", 3),
    ("masked", None),
    ("per_row", None),
]


def weights(key):
    shapes = {"q": (N, D, D), "k": (N, D, D), "v": (N, D, D), "out": (N, D, C)}
    return {
        n: jax.random.normal(k, s) / D**0.5
        for k, (n, s) in zip(jax.random.split(key, 4), shapes.items(), strict=True)
    }


def cached_attention(params):
    """One token a row: its key and value go to the row's place in the cache, then it attends to all
    that stand there.
    """

    def apply(w, i, state, rows, side):
        w, i = w
        h, place = state["h"], state["place"]
        side = {n: side[n].at[i, rows, place].set(h @ w[n]) for n in ("k", "v")}
        keys, values = side["k"][i, rows], side["v"][i, rows]
        scores = jnp.einsum("bd,bld->bl", h @ w["q"], keys) / D**0.5
        seen = jnp.arange(L)[None] <= place[:, None]
        h = h + jnp.einsum("bl,bld->bd", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf)), values)
        return {"h": h, "place": place}, h @ w["out"], side

    return dx.Step(lambda i: (jax.tree.map(lambda a: a[i], params), i), apply)


def in_numpy(params, h, place, side, depths):
    """Row by row, block by block; the side is written in place."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    h, read = np.array(h, np.float64), np.zeros((B, C))
    for row in range(B):
        for i in range(depths[row]):
            side["k"][i, row, place[row]], side["v"][i, row, place[row]] = (
                h[row] @ p["k"][i],
                h[row] @ p["v"][i],
            )
            keys, values = (
                side[n][i, row, : place[row] + 1].astype(np.float64) for n in ("k", "v")
            )
            scores = np.exp(keys @ (h[row] @ p["q"][i]) / D**0.5)
            h[row] += (scores / scores.sum()) @ values
            read[row] = h[row] @ p["out"][i]
    return h, read


@pytest.mark.parametrize(("executor", "tile"), EXECUTORS)
def test_a_cache_is_read_and_written_by_row(executor, tile):
    """Two tokens after another; rows that leave early write nothing into the cache of deeper
    blocks.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    params, h = weights(keys[0]), jax.random.normal(keys[1], (2, B, D))
    side = {n: jax.random.normal(k, (N, B, L, D)) for n, k in zip("kv", keys[2:], strict=True)}
    expected = jax.tree.map(lambda a: np.array(a), side)
    place = np.array([0, 3, 1, 4, 2, 0, 3], np.int32)
    for token in range(2):
        depths = np.random.default_rng(token).integers(1, N + 1, B).astype(np.int32)
        state = {"h": h[token], "place": jnp.asarray(place + token)}
        halted = dx.run_until(
            cached_attention(params),
            state,
            N,
            dx.criteria.at_depth(jnp.asarray(depths)),
            executor,
            tile,
            side=side,
        )
        final, read = in_numpy(params, h[token], place + token, expected, depths)
        side = halted.side
        np.testing.assert_array_equal(halted.exit_depth, depths)
        np.testing.assert_allclose(halted.output, read, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(halted.state["h"], final, rtol=1e-4, atol=1e-5)
        for name in "kv":
            np.testing.assert_allclose(side[name], expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.compiled
def test_the_cache_is_never_copied_in_the_loop():
    params = weights(jax.random.key(0))
    side = {n: jnp.zeros((N, 64, L, D)) for n in "kv"}
    state = {"h": jnp.ones((64, D)), "place": jnp.zeros(64, jnp.int32)}
    depths = jnp.arange(64, dtype=jnp.int32) % N + 1
    run = lambda side: dx.run_until(
        cached_attention(params), state, N, dx.criteria.at_depth(depths), "compacted", 16, side=side
    )
    text = jax.jit(run, donate_argnums=0).lower(side).compile().as_text()
    whole = re.escape(f"f32[{N},64,{L},{D}]")
    assert re.search(whole, text)
    assert not re.search(rf"= {whole}\S* copy\(", text)


@pytest.mark.parametrize("executor", ["compacted", "masked", "per_row"])
def test_a_step_may_count_its_own_rows(executor):
    """A side of one integer a row, through stages whose shapes differ: how often each row came by."""

    def count(i, state, rows, side):
        return state, state.reshape(len(rows), -1)[:, :1], side.at[rows].add(1)

    steps = (
        dx.Step(lambda i: (), lambda w, i, h, rows, side: count(i, h, rows, side)),
        dx.Step(lambda i: (), lambda w, i, h, rows, side: count(i, h[:, :2], rows, side)),
        dx.Step(lambda i: (), lambda w, i, h, rows, side: count(i, h, rows, side)),
    )
    depths = jnp.array([1, 5, 3, 2, 6, 4, 1], jnp.int32)
    halted = dx.run_until(
        steps,
        jnp.ones((7, 3)),
        (2, 1, 3),
        dx.criteria.at_depth(depths),
        executor,
        side=jnp.zeros(7, jnp.int32),
    )
    np.testing.assert_array_equal(halted.side, depths)
    np.testing.assert_array_equal(halted.exit_depth, depths)


def test_a_step_that_does_not_keep_the_side_is_refused():
    state, leave = jnp.ones((3, 2)), dx.criteria.at_depth(jnp.array([1, 2, 2]))
    forgets = dx.Step(lambda i: (), lambda w, i, h, rows, side: (h, h))
    with pytest.raises(
        TypeError,
        match=r"`step.apply` must return \(state, output, side\) where a `side` is given, got a tuple of 2",
    ):
        dx.run_until(forgets, state, 2, leave, side=jnp.zeros(3))
    changes = dx.Step(lambda i: (), lambda w, i, h, rows, side: (h, h, side.astype(jnp.int32)))
    with pytest.raises(ValueError, match=r"changed the side from float32\[3\] to int32\[3\]"):
        dx.run_until(changes, state, 2, leave, side=jnp.zeros(3))
