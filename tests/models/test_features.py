"""The state after every block under its name, staged or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.models.features import features

ROWS = 4
MODELS = {
    "mlp": (dx.models.Mlp(width=4, depth=4).build((3,), 2), (3,)),
    "resnet": (dx.models.Resnet(channels=(8, 16), blocks=(2, 2)).build((6, 6, 1), 2), (6, 6, 1)),
    "gru": (dx.models.Gru(width=4, steps=4).build((3,), 2), (3,)),
}


@pytest.mark.parametrize("name", ["mlp", pytest.param("resnet", marks=pytest.mark.slow), "gru"])
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
    every = dx.models.DeepThinking(width=4, steps=4, every=2).build((8, 1), 2)
    each = dx.models.DeepThinking(width=4, steps=4).build((8, 1), 2)
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
