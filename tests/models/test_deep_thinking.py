"""The recurrent convolutional network: shapes, recall, sizes it was not made for, rows apart."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.core.stages import one_depth


def run(model, params, x):
    return dx.run_all(model.steps(params), model.embed(params, x), model.depth)


@pytest.mark.parametrize("places,shape", [(1, (3, 10, 2)), (2, (3, 5, 4, 2))])
def test_an_answer_at_every_place_of_any_size(places, shape):
    model = dx.models.DeepThinking(width=8, steps=3, blocks=1).build(((8,) * places + (2,)), 4)
    params = model.init(jax.random.key(0))
    outputs = run(model, params, jax.random.normal(jax.random.key(1), shape))
    assert outputs.shape == (3, *shape[:-1], 4)
    larger = run(model, params, jnp.zeros((2, *(2 * n for n in shape[1:-1]), 2)))
    assert larger.shape == (3, 2, *(2 * n for n in shape[1:-1]), 4)


def test_one_iteration_by_hand():
    model = dx.models.DeepThinking(width=4, steps=1, blocks=1, norm=False).build((8, 1), 2)
    params = jax.tree.map(np.asarray, model.init(jax.random.key(0)))
    x = np.random.default_rng(0).normal(size=(6, 1)).astype(np.float32)

    def conv(h, kernel):
        padded = np.pad(h, ((1, 1), (0, 0)))
        return np.stack([sum(padded[t + d] @ kernel[d] for d in range(3)) for t in range(len(h))])

    relu = lambda a: np.maximum(a, 0)
    h = relu(conv(x, params["embed"]["conv"]["kernel"]))
    p, head = params["block"], params["head"]
    h = relu(conv(np.concatenate([h, x], axis=1), p["recall"]["kernel"]))
    h = relu(h + conv(relu(conv(h, p["in0"]["kernel"])), p["out0"]["kernel"]))
    wanted = conv(
        relu(conv(relu(conv(h, head["conv0"]["kernel"])), head["conv1"]["kernel"])),
        head["logits"]["kernel"],
    )
    np.testing.assert_allclose(run(model, params, x[None])[0, 0], wanted, rtol=1e-4, atol=1e-5)


def test_without_recall_only_the_first_state_knows_the_input():
    x = jax.random.normal(jax.random.key(1), (2, 6, 1))
    for recall, sees in ((True, True), (False, False)):
        model = dx.models.DeepThinking(width=8, steps=2, recall=recall).build((8, 1), 2)
        params = model.init(jax.random.key(0))
        state = model.embed(params, x)
        blinded = {**state, "input": jnp.zeros_like(x)}
        step = model.steps(params)
        a, b = (dx.run_all(step, s, 2) for s in (state, blinded))
        assert (np.abs(a - b).max() > 1e-6) == sees


def test_the_norm_keeps_long_runs_bounded_and_rows_are_apart():
    model = dx.models.DeepThinking(width=8, steps=200).build((8, 8, 3), 2)
    params = model.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (3, 4, 4, 3))
    state, _ = dx.run_full(model.steps(params), model.embed(params, x), 200)
    assert jnp.isfinite(state["h"]).all() and jnp.sqrt((state["h"] ** 2).mean()) < 1.01
    dx.check_row_independence(model.steps(params), model.embed(params, x), 1)


def test_with_walls_the_edge_is_a_wall_like_any_other():
    x = jax.random.normal(jax.random.key(1), (2, 5, 6, 3)) * jax.random.bernoulli(
        jax.random.key(2), 0.6, (2, 5, 6, 1)
    ).astype(jnp.float32)
    amid = jnp.pad(x, ((0, 0), (4, 2), (3, 7), (0, 0)))  # the same in a field of wall
    inside, open = (slice(None), slice(4, 9), slice(3, 9)), (x != 0).any(-1)
    for walls in (True, False):
        model = dx.models.DeepThinking(width=8, steps=4, blocks=1, walls=walls).build((8, 8, 3), 2)
        params = jax.tree.map(lambda a: a + 0.1, model.init(jax.random.key(0)))
        (alone, a), (_, b) = (
            dx.run_full(model.steps(params), model.embed(params, i), 4) for i in (x, amid)
        )
        same = np.allclose(a[open], b[inside][open], rtol=1e-4, atol=1e-5)
        assert same == walls
        assert bool((jnp.where(open[..., None], 0, alone["h"]) == 0).all()) == walls


def test_refusals():
    for inputs in ((8, 8, 8, 1), (8,), 8):
        with pytest.raises(ValueError, match="`DeepThinking`: inputs must be"):
            dx.models.DeepThinking().build(inputs, 2)
    with pytest.raises(ValueError, match="`DeepThinking`: steps must be a multiple of every"):
        dx.models.DeepThinking(steps=3, every=2).build((8, 2), 2)
    model = dx.models.DeepThinking(width=8, steps=2).build((8, 2), 2)
    with pytest.raises(ValueError, match=r"^`inputs` must be strings of shape \[B, any, 2\]"):
        model.embed(model.init(jax.random.key(0)), jnp.zeros((2, 5, 3)))


def test_tokens_are_one_hot_encoded():
    model = dx.models.DeepThinking(width=8, steps=2).build(dx.Tokens(5), 2)
    params, tokens = model.init(jax.random.key(0)), jnp.array([[0, 4, 2, 2]])
    one_hot = model.embed(params, jax.nn.one_hot(tokens, 5))
    chex.assert_trees_all_equal(model.embed(params, tokens), one_hot)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    assert model.embed(half, tokens)["h"].dtype == jnp.bfloat16
    with pytest.raises(TypeError, match="not 2 stages"):
        one_depth(model._replace(depth=(1, 2)))
