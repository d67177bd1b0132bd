"""The gated recurrent unit and the residual MLP against their equations, row by row."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx

INPUTS, CLASSES, WIDTH, ROWS = 5, 3, 6, 4


def scattered(params):
    """Parameters away from their initial zeros and ones, so that no bias or scale is idle."""
    draw = np.random.default_rng(1)
    return jax.tree.map(
        lambda a: np.asarray(a) + np.float32(0.2) * draw.standard_normal(a.shape, np.float32),
        params,
    )


def dense(x, p):
    return x @ p["kernel"] + (p["bias"] if "bias" in p else 0.0)


def cell(h, x, p):
    """Cho et al., 2014, with the reset gate behind the matrix, as in cuDNN."""
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    reset = sigmoid(dense(x, p["ir"]) + dense(h, p["hr"]))
    keep = sigmoid(dense(x, p["iz"]) + dense(h, p["hz"]))
    new = np.tanh(dense(x, p["in"]) + reset * dense(h, p["hn"]))
    return (1 - keep) * new + keep * h


def test_the_gru_reads_its_answer_after_the_update_of_every_step():
    model = dx.models.Gru(width=WIDTH, steps=6).build((INPUTS,), CLASSES)
    params = scattered(model.init(jax.random.key(0)))
    x = np.asarray(jax.random.normal(jax.random.key(2), (ROWS, INPUTS)))
    outputs = dx.run_all(model.steps(params), model.embed(params, x), model.depth)
    assert outputs["logits"].shape == (6, ROWS, CLASSES) and outputs["halt_logit"].shape == (
        6,
        ROWS,
    )
    for b in range(ROWS):
        h = np.zeros(WIDTH, np.float32)
        for i in range(6):
            h = cell(h, x[b], params["block"]["cell"])
            np.testing.assert_allclose(
                outputs["logits"][i, b], dense(h, params["head"]["logits"]), rtol=1e-4, atol=1e-5
            )
            np.testing.assert_allclose(
                outputs["halt_logit"][i, b],
                dense(h, params["head"]["halt"])[0],
                rtol=1e-4,
                atol=1e-5,
            )


def test_the_first_answer_of_the_gru_depends_on_the_input():
    """Read from the zero state, it would be the same for every row."""
    model = dx.models.Gru(width=WIDTH, steps=2).build((INPUTS,), CLASSES)
    params = model.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(3), (ROWS, INPUTS))
    first = dx.run_all(model.steps(params), model.embed(params, x), model.depth)["logits"][0]
    apart = jnp.abs(first[:, None] - first[None]).max(axis=-1)
    assert float((apart + jnp.eye(ROWS)).min()) > 1e-3


def test_the_gru_keeps_its_input_and_counts_steps_in_its_names():
    model = dx.models.Gru(width=WIDTH, steps=11).build((INPUTS,), CLASSES)
    params = model.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(4), (ROWS, INPUTS))
    state = model.embed(params, x)
    assert not state["h"].any() and state["h"].shape == (ROWS, WIDTH)
    after, _ = dx.run_full(model.steps(params), state, model.depth)
    np.testing.assert_array_equal(after["x"], x)
    assert (model.names[0], model.names[-1]) == ("step00", "step10")


def test_the_weights_of_the_gru_are_tied_so_it_may_run_longer_than_it_was_made_for():
    short, long = (dx.models.Gru(width=WIDTH, steps=n).build((INPUTS,), CLASSES) for n in (2, 5))
    params = short.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(5), (ROWS, INPUTS))
    run = lambda model: dx.run_all(model.steps(params), model.embed(params, x), model.depth)[
        "logits"
    ]
    np.testing.assert_allclose(run(long)[:2], run(short), rtol=1e-6)
    chex.assert_trees_all_equal(params, long.init(jax.random.key(0)))


def norm(x, p):
    p = p["LayerNorm_0"]
    return (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-6) * p["scale"] + p["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_the_mlp_adds_each_block_to_its_input():
    shape, depth = (2, 3, 1), 3
    model = dx.models.Mlp(width=WIDTH, depth=depth).build(shape, CLASSES)
    params = scattered(model.init(jax.random.key(0)))
    x = np.asarray(jax.random.normal(jax.random.key(6), (ROWS, *shape)))
    outputs = dx.run_all(model.steps(params), model.embed(params, x), depth)
    for b in range(ROWS):
        h = dense(x[b].ravel(), params["embed"]["inputs"])
        for i in range(depth):
            p = jax.tree.map(lambda a, i=i: a[i], params["blocks"])
            h = h + dense(
                gelu(dense(norm(h, p["block"]["norm"]), p["block"]["up"])), p["block"]["down"]
            )
            read = dense(norm(h, p["head"]["norm"]), p["head"]["logits"])
            np.testing.assert_allclose(outputs[i, b], read, rtol=1e-4, atol=1e-4)
    assert params["blocks"]["block"]["up"]["kernel"].shape == (depth, WIDTH, 2 * WIDTH)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: dx.models.Gru(steps=2).build((0,), 2), "`Gru`: inputs must be"),
        (lambda: dx.models.Gru(steps=2).build((3, 1), 2), "`Gru`: inputs must be"),
        (lambda: dx.models.Gru(steps=0).build((3,), 2), "`Gru`: steps must be at least 1"),
        (lambda: dx.models.Gru(steps=1).build((3,), 2.0), "`classes` must be an integer"),
        (lambda: dx.models.Mlp(depth=0).build((3,), 2), "`Mlp`: depth must be at least 1"),
        (lambda: dx.models.Mlp(width="4").build((3,), 2), "`Mlp`: width must be an integer"),
        (lambda: dx.models.Mlp().build(dx.Tokens(3), 2), "`Mlp`: inputs must be"),
        (lambda: dx.models.Mlp().build((3,), 1), "`classes` must be an integer of at least 2"),
    ],
)
def test_what_is_refused(make, words):
    with pytest.raises(ValueError, match=f"{words}"):
        make()
