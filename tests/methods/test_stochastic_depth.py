"""Stochastic depth around another method: its loss on a network with blocks left out, its inference
untouched.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.methods.exits.confidence_exits import confidence_exits
from dynexit.methods.exits.fixed_depth import fixed_depth
from dynexit.methods.exits.stochastic_depth import changing, stochastic_depth
from dynexit.methods.recurrent.recurrent_depth import recurrent_depth
from dynexit.models.features import features
from dynexit.transforms.stochastic_depth import dropped_blocks, survival

B, N, C = 16, 6, 3
MODEL = dx.models.Mlp(width=8, depth=N).build((4,), C)
PARAMS = jax.jit(MODEL.init)(jax.random.key(0))
X = jax.random.normal(jax.random.key(1), (B, 4))
LABELS = jax.random.randint(jax.random.key(2), (B,), 0, C)
PROGRESS = jnp.float32(0.0)


@pytest.mark.parametrize("by", ["batch", "row"])
@pytest.mark.parametrize("inner", [fixed_depth, confidence_exits])
def test_the_loss_is_the_method_s_on_the_blocks_that_were_kept(by, inner):
    method, key, chance = stochastic_depth(inner(), 0.4, by), jax.random.key(3), survival(N, 0.4)
    losses, metrics = jax.jit(lambda p: method.loss(MODEL, p, X, LABELS, key, PROGRESS))(PARAMS)
    kept = jax.random.bernoulli(
        key, chance if by == "batch" else chance[:, None], (N,) if by == "batch" else (N, B)
    )
    assert 0 < kept.sum() < kept.size
    outputs = dx.run_all(
        dropped_blocks(MODEL.steps(PARAMS), kept, 1 / chance), MODEL.embed(PARAMS, X), N
    )
    wanted, told = inner().objective(outputs, LABELS, PROGRESS)
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    assert metrics.keys() == told.keys() | {"kept_blocks"}
    np.testing.assert_allclose(metrics["kept_blocks"], kept.mean(), rtol=1e-6)


def test_blocks_that_change_the_shape_are_always_kept_and_counted_as_such():
    model = dx.models.Resnet(channels=(8, 8, 16), blocks=(1, 1, 2)).build((6, 6, 1), 2)
    params, x = model.init(jax.random.key(0)), jnp.ones((4, 6, 6, 1))
    always = changing(model.steps(params), model.depth, jax.eval_shape(model.embed, params, x))
    states = [model.embed(params, x), *features(model, params, x).values()]
    told = [a.shape != b.shape for a, b in itertools.pairwise(states)]
    assert np.concatenate(always).tolist() == told and any(told) and not all(told)
    method = stochastic_depth(fixed_depth(), 1e-6)
    share = jax.jit(
        lambda key: method.loss(model, params, x, LABELS[:4] % 2, key, PROGRESS)[1]["kept_blocks"]
    )
    shares = {float(share(jax.random.key(k))) for k in range(4)}
    assert min(shares) >= sum(told) / 4 - 1e-6


def test_with_last_one_it_is_the_method_itself():
    losses, metrics = stochastic_depth(fixed_depth(), 1.0).loss(
        MODEL, PARAMS, X, LABELS, jax.random.key(0), PROGRESS
    )
    outputs = dx.run_all(MODEL.steps(PARAMS), MODEL.embed(PARAMS, X), N)
    np.testing.assert_allclose(
        losses, fixed_depth().objective(outputs, LABELS, PROGRESS)[0], rtol=1e-5
    )
    assert float(metrics["kept_blocks"]) == 1.0


def test_stages_are_walked_through():
    """Blocks that change the shape are kept whatever is drawn, and the rest counts on through the
    stages.
    """
    model = dx.models.Resnet(channels=(8, 16), blocks=(2, 2)).build((8, 8, 1), C)
    params, images = (
        model.init(jax.random.key(0)),
        jax.random.normal(jax.random.key(1), (4, 8, 8, 1)),
    )
    loss = jax.jit(
        lambda p, key: (
            stochastic_depth(fixed_depth(), 0.2)
            .loss(model, p, images, LABELS[:4], key, PROGRESS)[0]
            .mean()
        )
    )
    values = {round(float(loss(params, jax.random.key(k))), 6) for k in range(8)}
    assert len(values) > 1 and all(np.isfinite(list(values)))


def test_inference_is_the_method_s():
    inner = confidence_exits()
    method = stochastic_depth(inner)
    assert (method.criterion, method.candidates, method.predict) == (
        inner.criterion,
        inner.candidates,
        inner.predict,
    )
    assert method.objective is None


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: stochastic_depth(recurrent_depth(2.0, truncate=1)),
            "`method` must have an objective",
        ),
        (
            lambda: stochastic_depth(fixed_depth(), by="token"),
            "`by` must be 'batch' or 'row', got 'token'",
        ),
        (
            lambda: stochastic_depth(fixed_depth(), last=0.0),
            "`last` must be above 0 and at most 1, got 0.0",
        ),
    ],
)
def test_refusals(call, text):
    with pytest.raises(ValueError) as error:
        call()
    assert text in str(error.value)
