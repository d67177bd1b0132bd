"""Recurrent layers against their equations, place by place; every layer has an exit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx

TOKENS = np.array([[0, 2, 1, 3], [3, 3, 0, 1]])


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def dense(x, p):
    return x @ p["kernel"] + (p["bias"] if "bias" in p else 0.0)


def elman(p, state, x):
    h = np.tanh(dense(x, p["i"]) + dense(state, p["h"]))
    return h, h


def lstm(p, state, x):
    c, h = state
    i, f, g, o = (dense(x, p[f"i{name}"]) + dense(h, p[f"h{name}"]) for name in "ifgo")
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (c, h), h


@pytest.mark.parametrize(
    "cell, one, begun",
    [("elman", elman, np.zeros((2, 6))), ("lstm", lstm, (np.zeros((2, 6)),) * 2)],
)
def test_every_layer_reads_the_one_below_from_left_to_right(cell, one, begun):
    model = dx.models.Rnn(width=6, depth=2, cell=cell).build(dx.Tokens(4), 3)
    draw = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: np.asarray(a) + 0.2 * draw.standard_normal(a.shape, np.float32),
        model.init(jax.random.key(0)),
    )
    found = dx.run_all(model.steps(params), model.embed(params, jnp.asarray(TOKENS)), model.depth)
    x = params["embed"][TOKENS]
    for layer in range(2):
        of = lambda tree, layer=layer: jax.tree.map(lambda a: a[layer], tree)
        weights, head = (
            of(params["blocks"]["block"])["cell"],
            of(params["blocks"]["head"])["logits"],
        )
        state, said = begun, []
        for t in range(TOKENS.shape[1]):
            state, h = one(weights, state, x[:, t])
            said.append(h)
        x = np.stack(said, axis=1)
        np.testing.assert_allclose(found[layer], dense(x, head), rtol=1e-4, atol=1e-5)


def test_every_parameter_is_trained_by_the_last_exit_but_the_heads_before_it():
    model = dx.models.Rnn(width=6, depth=2, cell="gru").build(dx.Tokens(4), 3)
    params = model.init(jax.random.key(0))
    loss = lambda p: dx.methods.fixed_depth().objective(
        dx.run_all(model.steps(p), model.embed(p, jnp.asarray(TOKENS)), 2),
        jnp.asarray(TOKENS) % 3,
        jnp.float32(0.0),
    )[0]
    slopes = jax.grad(lambda p: loss(p).sum())(params)
    assert all(
        np.abs(leaf).max() > 0
        for leaf in jax.tree.leaves((slopes["embed"], slopes["blocks"]["block"]))
    )
    assert all(
        not leaf[0].any() and leaf[1].any() for leaf in jax.tree.leaves(slopes["blocks"]["head"])
    )


def test_refusals():
    with pytest.raises(ValueError, match="`Rnn`: cell must be one of elman, gru, lstm"):
        dx.models.Rnn(width=6, cell="rnn").build(dx.Tokens(4), 3)
    model = dx.models.Rnn(width=6).build(dx.Tokens(4), 3)
    with pytest.raises(
        ValueError, match=r"`inputs` must be integers \[B, L\], got float32\[2, 4, 1\]"
    ):
        model.embed(model.init(jax.random.key(0)), jnp.zeros((2, 4, 1)))
