"""Every block's state under its name, staged or not; and what the backbones share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.layers.parts import Apply, Norm, block_names, check_input, initial_stack
from dynexit.models.features import features
from dynexit.models.mlp import mlp
from dynexit.models.recurrent.gru import gru_ponder
from dynexit.models.vision.resnet import resnet

ROWS = 4
MODELS = {
    "mlp": (mlp((3,), 2, width=4, depth=4), (3,)),
    "resnet": (resnet((6, 6, 1), 2, stages=((8, 2), (16, 2))), (6, 6, 1)),
    "gru": (gru_ponder(3, 2, width=4, steps=4), (3,)),
}


@pytest.mark.parametrize("name", MODELS)
def test_features_are_the_states_at_which_rows_leave(name):
    """Row b leaves after d blocks with the state that `features` has under the d-th name."""
    model, shape = MODELS[name]
    params = model.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (ROWS, *shape))
    found = jax.jit(lambda p, x: features(model, p, x))(params, x)
    assert tuple(sorted(found)) == model.names
    depths = np.array([3, 1, 4, 2])
    leave = dx.criteria.at_depth(jnp.asarray(depths, jnp.int32))
    halted = dx.run_until(
        model.steps(params), model.embed(params, x), model.depth, leave, executor="masked"
    )
    for b, depth in enumerate(depths):
        state = halted.state
        if isinstance(model.depth, tuple):  # one entry a stage: the one that the depth falls in
            state = state[int(np.searchsorted(np.cumsum(model.depth), depth))]
        close = lambda a, s, b=b: np.testing.assert_allclose(a[b], s[b], rtol=1e-5, atol=1e-5)
        jax.tree.map(close, found[model.names[depth - 1]], state)


def test_states_are_named_by_the_last_block_of_their_step():
    every = dx.models.deep_thinking(1, 1, 2, width=4, steps=4, every=2)
    each = dx.models.deep_thinking(1, 1, 2, width=4, steps=4)
    params, x = every.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (ROWS, 8, 1))
    found, all_four = features(every, params, x), features(each, params, x)
    assert list(found) == ["step001", "step003"]
    for name in found:
        np.testing.assert_allclose(found[name]["h"], all_four[name]["h"], rtol=1e-5, atol=1e-6)


def test_states_of_stages_keep_their_shapes():
    model, shape = MODELS["resnet"]
    found = jax.eval_shape(
        lambda key: features(model, model.init(key), jnp.ones((ROWS, *shape))), jax.random.key(0)
    )
    assert [found[name].shape[1:] for name in model.names] == [
        (3, 3, 8),
        (3, 3, 8),
        (2, 2, 16),
        (2, 2, 16),
    ]


def test_what_is_not_used_is_not_computed():
    """One block's features cost less than all of the network's."""
    model, shape = MODELS["resnet"]
    params, x = model.init(jax.random.key(0)), jnp.ones((ROWS, *shape))
    flops = lambda block: (
        jax.jit(lambda p: features(model, p, x)[block])
        .lower(params)
        .compile()
        .cost_analysis()["flops"]
    )
    assert flops("block00") < 0.75 * flops("block03")


def test_names_sort_in_order_of_depth():
    assert block_names(3) == ("block00", "block01", "block02")
    assert list(block_names(100)) == sorted(block_names(100))


def test_norm_is_computed_in_float32():
    """Around a mean of 300, bfloat16 steps are 2 apart: a variance taken there would be far off."""
    x = (300.0 + 8.0 * jax.random.normal(jax.random.key(2), (ROWS, 64))).astype(jnp.bfloat16)
    module = Norm()
    found = module.apply(module.init(jax.random.key(0), x), x)
    exact = x.astype(jnp.float32)
    exact = (exact - exact.mean(axis=1, keepdims=True)) / exact.std(axis=1, keepdims=True)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.02)


def test_equal_modules_are_equal_functions():
    assert Apply(Norm(), "norm") == Apply(Norm(), "norm") and hash(Apply(Norm(), "a")) == hash(
        Apply(Norm(), "a")
    )
    assert Apply(Norm(), "norm") != Apply(Norm(), "other")


def test_a_stack_is_drawn_block_by_block():
    from flax.linen import Dense

    keys = jax.random.split(jax.random.key(3), 4)
    stacked = initial_stack(
        Dense(2), jax.random.key(3), jax.ShapeDtypeStruct((1, 5), jnp.float32), 4
    )
    for k in range(4):
        alone = Dense(2).init(keys[k], jnp.zeros((1, 5)))["params"]
        np.testing.assert_allclose(stacked["kernel"][k], alone["kernel"], rtol=1e-6)


@pytest.mark.parametrize(
    "inputs, error, words",
    [
        (jnp.ones((2, 3)), ValueError, "`inputs` must be images of shape [B, 4, 4, 1], got [2, 3]"),
        (jnp.ones((4, 4, 1)), ValueError, "`inputs` must be images of shape [B, 4, 4, 1], got [4, 4, 1]"),
        (jnp.ones((2, 4, 4, 3)), ValueError, "`inputs` must be images of shape [B, 4, 4, 1], got [2, 4, 4, 3]"),
        (np.ones((2, 4, 4, 1), np.uint8), TypeError, "`inputs` must be floating point, got uint8; scale them first"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_named(inputs, error, words):
    with pytest.raises(error) as caught:
        check_input(inputs, (4, 4, 1), "images")
    assert str(caught.value).startswith(words)
