"""`dx.build`: three ways to hold weights, stages, seeds, training with dropout, and what it
refuses.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dynexit as dx
from dynexit.core.settings import Training
from dynexit.models.build import WEIGHTS
from dynexit.training.parallel.mesh import make_mesh
from dynexit.training.state import create_state
from dynexit.training.step import make_train_step

D, C, N = 6, 3, 4
X = jax.random.normal(jax.random.key(1), (5, 8))


def dense(a, b):
    return lambda key: {"w": jax.random.normal(key, (a, b)) * a**-0.5}


def linear(p, x):
    return x @ p["w"]


def residual(p, h):
    return h + jnp.tanh(linear(p, h))


def identity(x):
    return x


EMBED, BLOCK, HEAD = (dense(8, D), linear), (dense(D, D), residual), (dense(D, C), linear)


def outputs_of(model, params, x=X):
    return dx.run_all(model.steps(params), model.embed(params, x), model.depth)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_model_is_the_loop_over_its_parts(weights):
    model = dx.build(EMBED, BLOCK, HEAD, N, weights, inputs=(8,))
    params = jax.jit(model.init)(jax.random.key(0))
    blocks = {
        "stacked": lambda k: dx.take(params["blocks"], k),
        "tied": lambda k: params["blocks"],
        "list": lambda k: params["blocks"][k],
    }[weights]
    h, wanted = linear(params["embed"], X), []
    for k in range(N):
        h = residual(blocks(k)["block"], h)
        wanted.append(linear(blocks(k)["head"], h))
    outputs = outputs_of(model, params)
    np.testing.assert_allclose(outputs, jnp.stack(wanted), rtol=1e-5, atol=1e-5)
    step, state = model.steps(params), model.embed(params, X)
    rule = dx.criteria.max_probability_above(jnp.median(jax.nn.softmax(outputs[:2]).max(-1)))
    halted = dx.run_until(step, state, criterion=rule)  # tied weights have the model's depth too
    np.testing.assert_allclose(
        halted.output, outputs[halted.exit, jnp.arange(5)], rtol=1e-5, atol=1e-5
    )
    assert len(model.names) == N and model.depth == N


def test_every_weight_has_a_seed_of_its_own():
    stacked = dx.build(EMBED, BLOCK, HEAD, N)
    params = stacked.init(jax.random.key(0))
    leaves = [
        *params["blocks"]["block"]["w"].reshape(N, -1),
        *params["blocks"]["head"]["w"].reshape(N, -1),
        params["embed"]["w"].reshape(-1),
    ]
    assert len({float(a[0]) for a in leaves}) == 2 * N + 1
    again, other = stacked.init(jax.random.key(0)), stacked.init(jax.random.key(1))
    chex.assert_trees_all_equal(params, again)
    assert not np.allclose(params["embed"]["w"], other["embed"]["w"])
    listed = dx.build(EMBED, BLOCK, HEAD, N, "list").init(jax.random.key(0))
    jax.tree.map(np.testing.assert_allclose, params["blocks"], dx.stack(listed["blocks"]))


def test_equal_steps_of_one_model_compile_once():
    model = dx.build(EMBED, BLOCK, HEAD, N)
    first, second = (model.steps(model.init(jax.random.key(k))) for k in (0, 1))
    assert jax.tree.structure(first) == jax.tree.structure(second)


def test_kinds_may_be_mixed_and_blocks_differ():
    blocks = [nn.Dense(D), lambda rngs: nnx.Linear(D, D, rngs=rngs), jnp.tanh]
    model = dx.build(EMBED, blocks, HEAD, 3, "list", (8,))
    params = model.init(jax.random.key(0))
    h = linear(params["embed"], X)
    for p in params["blocks"][:2]:
        h = h @ p["block"]["kernel"] + p["block"]["bias"][None]
    last = linear(params["blocks"][2]["head"], jnp.tanh(h))
    np.testing.assert_allclose(outputs_of(model, params)[-1], last, rtol=1e-4, atol=1e-5)
    assert params["blocks"][2]["block"] == {}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_stages_change_the_shape_of_the_state(weights):
    down, narrow = (dense(D, 2), linear), (dense(2, 2), residual)
    heads = [HEAD, (dense(2, C), linear), (dense(2, C), linear)]
    model = dx.build(EMBED, [BLOCK, down, narrow], heads, (2, 1, 3), weights, (8,))
    params = model.init(jax.random.key(0))
    outputs = outputs_of(model, params)
    assert outputs.shape == (6, 5, C) and model.depth == (2, 1, 3) and len(model.names) == 6
    rule = dx.criteria.max_probability_above(jnp.median(jax.nn.softmax(outputs).max(-1)))
    step, state = model.steps(params), model.embed(params, X)
    halted = dx.run_until(step, state, None, rule)
    np.testing.assert_allclose(
        halted.output, outputs[halted.exit, jnp.arange(5)], rtol=1e-5, atol=1e-5
    )
    shared = dx.build(identity, [BLOCK, BLOCK], HEAD, (1, 2), weights, (D,))
    assert shared.init(jax.random.key(0))["blocks"][1] is not None


def test_inputs_may_be_tokens_or_a_batch():
    embed = nn.Embed(7, D)
    by_tokens = dx.build(embed, BLOCK, HEAD, 2, inputs=dx.Tokens(7, 3))
    params = by_tokens.init(jax.random.key(0))
    assert outputs_of(by_tokens, params, jnp.ones((5, 3), jnp.int32)).shape == (2, 5, 3, C)
    batch = {"a": jnp.ones((2, 8)), "b": jax.ShapeDtypeStruct((2, 8), jnp.float32)}
    both = (lambda key: {}, lambda p, x: jnp.concatenate([x["a"], x["b"]], axis=1))
    model = dx.build(both, nn.Dense(16), nn.Dense(C), 2, inputs=batch)
    assert model.init(jax.random.key(0))["blocks"]["head"]["kernel"].shape == (2, 16, C)


def test_bfloat16_parameters_compute_in_bfloat16():
    model = dx.build(EMBED, BLOCK, HEAD, N)
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), model.init(jax.random.key(0)))
    x = X.astype(jnp.bfloat16)
    assert outputs_of(model, params, x).dtype == jnp.bfloat16
    dx.check_row_independence(model.steps(params), model.embed(params, x))


class Dropped(nn.Module):
    rate: float

    @nn.compact
    def __call__(self, h, deterministic):
        return h + nn.Dropout(self.rate)(nn.Dense(D)(h), deterministic=deterministic)


def experiment(rate, method=None):
    model = dx.build(EMBED, Dropped(rate), HEAD, 2, inputs=(8,))
    labels = np.arange(5, dtype=np.int32) % C
    batch = {"inputs": np.asarray(X), "labels": labels}
    source = dx.Source("train", lambda seed, step, size: batch, lambda: batch, 5)
    method = method or dx.methods.confidence_exits()
    return dx.Experiment(model, method, source, source, source, classes=("a", "b", "c"))


@pytest.mark.parametrize("remat", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_drops_and_inference_does_not(remat, precision):
    settings = Training(
        steps=4, batch_size=5, remat=remat, precision=precision, warmup=0.0, weight_decay=0.0
    )
    mesh = make_mesh(devices=jax.devices()[:1])
    losses = {}
    for rate in (0.0, 0.5):
        made = experiment(rate)
        train_step = make_train_step(made, settings, mesh)
        batch = {"inputs": X, "labels": jnp.arange(5, dtype=jnp.int32) % C}
        first = create_state(made, settings, 0, mesh)
        repeated = create_state(made, settings, 0, mesh)
        other = create_state(made, settings, 0, mesh)._replace(key=jax.random.key(9))
        state, metrics = train_step(first, batch)
        assert int(state.step) == 1
        losses[rate] = [
            float(m["loss"])
            for m in (metrics, train_step(repeated, batch)[1], train_step(other, batch)[1])
        ]
    assert losses[0.0][0] == losses[0.0][2]
    assert losses[0.5][0] == losses[0.5][1] != losses[0.5][2]
    assert losses[0.5][0] != losses[0.0][0]


def test_models_made_from_a_model_with_dropout_have_it_too():
    halting = lambda p, h: {"logits": linear(p, h), "halt_logit": linear(p, h)[:, 0]}
    model = dx.build(EMBED, Dropped(0.5), (dense(D, C), halting), 2, inputs=(8,))
    params = model.init(jax.random.key(0))
    for wrap in (dx.transforms.best_so_far, dx.transforms.averaged):
        made = wrap(model)
        found = [outputs_of(made.training(jax.random.key(k)), params)["logits"] for k in (0, 1)]
        assert not np.allclose(found[0], found[1])
        inference = outputs_of(made, params)["logits"]
        np.testing.assert_array_equal(inference, outputs_of(made, params)["logits"])


def test_dropout_with_rows_that_are_kept_is_refused():
    made = experiment(0.5, dx.methods.segments(2, refill=True))
    with pytest.raises(ValueError, match=r"`experiment\.model` has dropout"):
        make_train_step(made, Training(batch_size=5), make_mesh(devices=jax.devices()[:1]))


@pytest.mark.parametrize(
    ("arguments", "error", "name"),
    [
        ({"weights": "shared"}, ValueError, "weights"),
        ({"depth": 0}, ValueError, "depth"),
        ({"depth": 2.0}, TypeError, "depth"),
        ({"block": [BLOCK] * 3}, ValueError, "block"),
        ({"head": [HEAD]}, ValueError, "head"),
        ({"block": [BLOCK] * 4, "weights": "tied"}, ValueError, "block"),
        ({"depth": (2, 2)}, ValueError, "block"),
        ({"depth": (2, 2), "block": [BLOCK]}, ValueError, "block"),
        ({"depth": (2, 2), "block": [BLOCK, BLOCK], "head": [HEAD]}, ValueError, "head"),
        ({"depth": (2, 0), "block": [BLOCK, BLOCK]}, ValueError, r"depth\[1\]"),
        ({"inputs": dx.Tokens(5)}, ValueError, "inputs"),
        ({"block": identity, "head": identity}, ValueError, "weights"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arguments, error, name):
    given = {"embed": EMBED, "block": BLOCK, "head": HEAD, "depth": N} | arguments
    with pytest.raises(error, match=f"`{name}`"):
        dx.build(**{"inputs": (8,)} | given)


def test_parts_are_checked_against_each_other_where_inputs_are_given():
    with pytest.raises(ValueError, match=r"`block` .* float32\[2, 6\]"):
        dx.build(EMBED, (dense(D, D + 1), linear), HEAD, 2, inputs=(8,))
    first_row = lambda h: h[:1]
    with pytest.raises(ValueError, match="leading axis"):
        dx.build(EMBED, BLOCK, first_row, 2, inputs=(8,))
