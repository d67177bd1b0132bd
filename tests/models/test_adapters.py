"""Modules of flax and equinox in `dx.build`: the block is the module, the engine takes it, and what
is not a function of its weights and its row is refused.
"""

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracle import leave_at

import dynexit as dx
from dynexit.training.optimizer import decayed

WIDTH, BLOCKS = 6, 4
STATE = jax.random.normal(jax.random.key(7), (5, WIDTH))


class LinenBlock(nn.Module):
    slope: float = 1.0

    @nn.compact
    def __call__(self, x):
        return x + nn.tanh(self.slope * nn.Dense(WIDTH, name="inner")(nn.LayerNorm(name="norm")(x)))


class NNXBlock(nnx.Module):
    def __init__(self, rngs, slope=1.0, width=2 * WIDTH):
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        init = nnx.initializers.normal(0.5)  # a new function in every block, as users write it
        self.layers = nnx.List(
            [
                nnx.Linear(WIDTH, width, kernel_init=init, rngs=rngs),
                nnx.Linear(width, WIDTH, rngs=rngs),
            ]
        )
        self.slope = slope

    def __call__(self, x):
        return x + self.layers[1](jnp.tanh(self.slope * self.layers[0](self.norm(x))))


class EquinoxBlock(eqx.Module):
    mlp: eqx.nn.MLP
    slope: float

    def __init__(self, key, slope=1.0):
        self.mlp = eqx.nn.MLP(WIDTH, WIDTH, 8, 1, activation=jnp.tanh, key=key)
        self.slope = slope

    def __call__(self, x):
        return x + self.slope * self.mlp(x)


def identity(x):
    return x


def model_of(block, depth=BLOCKS, weights="stacked", inputs=(WIDTH,)):
    return dx.build(identity, block, identity, depth, weights, inputs)


def run_all(model, params, state=STATE):
    return dx.run_all(model.steps(params), state, model.depth)


def linen():
    module = LinenBlock()
    variables = [module.init(jax.random.key(i), STATE) for i in range(BLOCKS)]
    calls = [lambda x, v=v: module.apply(v, x) for v in variables]
    return calls, [module.bind(v) for v in variables], module


def nnx_():
    blocks = [NNXBlock(nnx.Rngs(i)) for i in range(BLOCKS)]
    return blocks, blocks, NNXBlock


def equinox():
    blocks = [EquinoxBlock(jax.random.key(i)) for i in range(BLOCKS)]
    return [jax.vmap(b) for b in blocks], blocks, EquinoxBlock


KINDS = pytest.mark.parametrize("kind", [linen, nnx_, equinox])


@KINDS
@pytest.mark.parametrize("weights", ["stacked", "list"])
def test_trained_blocks_one_after_the_other_give_what_the_engine_gives(kind, weights):
    calls, blocks, _ = kind()
    model = model_of(blocks, weights=weights)
    params = model.init(jax.random.key(0))
    outputs = run_all(model, params)
    depths = [4, 1, 2, 3, 1]
    step = model.steps(params)
    halted = dx.run_until(step, STATE, None, leave_at(depths), executor="compacted", tile=2)
    state = STATE
    for i, call in enumerate(calls):
        state = call(state)
        np.testing.assert_allclose(outputs[i], state, rtol=1e-5, atol=1e-6)
    exits = outputs[jnp.array(depths) - 1, jnp.arange(5)]
    np.testing.assert_allclose(halted.output, exits, rtol=1e-5, atol=1e-6)
    assert len(np.unique(np.asarray(outputs[:, 0, 0]))) == BLOCKS
    dx.check_row_independence(step, STATE)


@KINDS
def test_parameters_are_nested_dicts_of_arrays(kind):
    _, _, make = kind()
    params = model_of(make).init(jax.random.key(0))["blocks"]["block"]

    def check(tree):
        if isinstance(tree, dict):
            for child in tree.values():
                check(child)
        else:
            assert isinstance(tree, jax.Array) and tree.shape[0] == BLOCKS

    assert type(params) is dict
    check(params)


@KINDS
def test_gradient_is_that_of_the_module(kind):
    """Central differences along the gradient, through the whole depth."""
    _, _, make = kind()
    model = model_of(make)
    params = model.init(jax.random.key(0))
    loss = jax.jit(lambda params: (run_all(model, params) ** 2).sum())
    gradient = jax.grad(loss)(params)
    leaves = jax.tree.leaves(gradient)
    assert all(float(jnp.abs(g).max()) > 0 for g in leaves)
    norm = float(jnp.sqrt(sum(jnp.vdot(g, g) for g in leaves)))
    at = lambda h: float(loss(jax.tree.map(lambda a, g: a + h / norm * g, params, gradient)))
    np.testing.assert_allclose(norm, (at(1e-3) - at(-1e-3)) / 2e-3, rtol=1e-2)


@KINDS
def test_equal_modules_compile_once(kind):
    traces = 0

    @jax.jit
    def run(step, state):
        nonlocal traces
        traces += 1
        return dx.run_all(step, state, BLOCKS)

    for _ in range(2):
        model = model_of(kind()[1])
        run(model.steps(model.init(jax.random.key(0))), STATE)
    assert traces == 1


def test_a_later_change_of_a_module_is_not_seen():
    block = NNXBlock(nnx.Rngs(0))
    model = model_of(block, 1)
    before = model.init(jax.random.key(0))
    block.layers[1].kernel[...] = jnp.zeros((2 * WIDTH, WIDTH))
    after = model.init(jax.random.key(0))
    chex.assert_trees_all_equal(after, before)
    assert not np.allclose(block(STATE), run_all(model, after)[0])


def test_partitioned_parameters_are_unboxed():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    model = model_of(nn.Dense(WIDTH, kernel_init=init))
    params = model.init(jax.random.key(0))
    assert isinstance(params["blocks"]["block"]["kernel"], jax.Array)
    assert run_all(model, params).shape == (BLOCKS, 5, WIDTH)


def test_linen_takes_its_shapes_from_an_input():
    with pytest.raises(ValueError, match="`inputs`"):
        model_of(nn.Dense(WIDTH), inputs=None)
    with pytest.raises(TypeError, match=r"`block` must be an instance of Dense"):
        model_of(nn.Dense)


# State that a call changes, and dropout.


def normalised(rngs):
    return nnx.BatchNorm(WIDTH, rngs=rngs)


def test_batch_statistics_are_refused_by_name():
    linen = nn.BatchNorm(use_running_average=False)
    bound = linen.bind(linen.init(jax.random.key(0), STATE))
    for module in (linen, bound):
        with pytest.raises(ValueError, match=r"`block` \(BatchNorm\).*\['batch_stats'\]"):
            model_of(module)
    with pytest.raises(ValueError, match=r"`block` \(BatchNorm\).*mean \(BatchStat\)"):
        model_of(normalised)
    with pytest.raises(ValueError, match=r"`block\[0\]` \(BatchNorm\).*mean \(BatchStat\)"):
        model_of([normalised(nnx.Rngs(0))] * BLOCKS)
    make = lambda key: eqx.nn.BatchNorm(WIDTH, "batch", mode="batch")
    with pytest.raises(ValueError, match=r"`block` \(BatchNorm\) has state"):
        model_of(make)


def test_frozen_batch_statistics_of_a_trained_module_are_taken():
    blocks = [normalised(nnx.Rngs(i)) for i in range(BLOCKS)]
    for k, block in enumerate(blocks):
        for _ in range(3):
            block(k + (k + 1) * STATE)
        block.eval()
    model = model_of(blocks)
    params = model.init(jax.random.key(0))
    state = STATE
    for block in blocks:
        state = block(state)
    np.testing.assert_allclose(run_all(model, params)[-1], state, rtol=1e-5, atol=1e-5)
    dx.check_row_independence(model.steps(params), STATE)
    gradient = jax.grad(lambda p: run_all(model, p).sum())(params)["blocks"]["block"]
    assert all(float(jnp.abs(g).max()) == 0 for g in jax.tree.leaves(gradient["_frozen"]))
    assert float(jnp.abs(gradient["scale"]).max()) > 0
    frozen = decayed(params)["blocks"]["block"]["_frozen"]
    assert not any(jax.tree.leaves(frozen))


class NNXDropout(nnx.Module):
    def __init__(self, rngs):
        self.dense, self.drop = nnx.Linear(WIDTH, WIDTH, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return x + self.drop(self.dense(x))


class LinenDropout(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return x + nn.Dropout(0.5)(nn.Dense(WIDTH)(x), deterministic=not train)


class EquinoxDropout(eqx.Module):
    dense: eqx.nn.Linear
    drop: eqx.nn.Dropout

    def __init__(self, key):
        self.dense, self.drop = eqx.nn.Linear(WIDTH, WIDTH, key=key), eqx.nn.Dropout(0.5)

    def __call__(self, x, key):
        return x + self.drop(self.dense(x), key=key)


def plain_dropout():
    def apply(w, x, key=None):
        new = x @ w
        if key is not None:
            kept = jax.vmap(lambda k: jax.random.bernoulli(k, 0.5, (WIDTH,)))(key)
            new = jnp.where(kept, 2 * new, 0)
        return x + new

    return lambda key: jax.random.normal(key, (WIDTH, WIDTH)), apply


DROPOUT = pytest.mark.parametrize(
    "block",
    [NNXDropout, LinenDropout(), EquinoxDropout, plain_dropout()],
    ids=["nnx", "linen", "equinox", "function"],
)


@DROPOUT
def test_dropout_is_off_at_inference_and_on_in_training_row_by_row(block):
    model = model_of(block)
    params = model.init(jax.random.key(0))
    plain = run_all(model, params)
    np.testing.assert_array_equal(plain, run_all(model, params))
    added = plain[0] - STATE

    def trained(key, rows=STATE):
        noisy = model.training(jax.random.key(key))
        state = noisy.embed(params, rows)
        return dx.run_all(noisy.steps(params), state, noisy.depth)

    outputs = trained(1)
    # what a block adds is dropped, or doubled
    scale = (outputs[0] - STATE) / added
    assert set(np.unique(np.round(scale, 2) + 0.0)) == {0.0, 2.0}
    assert not np.allclose(outputs, trained(2))
    masks = [np.round(np.asarray(row)) for row in scale]
    assert len({m.tobytes() for m in masks}) > 1  # rows differ
    # a row is dropped alike whichever rows come with it
    np.testing.assert_allclose(outputs[:, :2], trained(1, STATE[:2]), rtol=1e-5, atol=1e-5)


@DROPOUT
def test_dropout_does_not_depend_on_the_executor(block):
    model = model_of(block, 3)
    params = model.init(jax.random.key(0))
    noisy = model.training(jax.random.key(3))
    step, state = noisy.steps(params), noisy.embed(params, STATE)
    dx.check_row_independence(step, state)
    rule = leave_at([3, 1, 2, 3, 1])
    runs = [dx.run_bounded(step, state, 3, rule, executor) for executor in ("masked", "compacted")]
    np.testing.assert_allclose(runs[0].output, runs[1].output, rtol=1e-5, atol=1e-5)
    every = dx.run_all(step, state, 3)
    np.testing.assert_allclose(
        runs[0].output, every[runs[0].exit, jnp.arange(5)], rtol=1e-5, atol=1e-5
    )


def test_dropout_that_cannot_be_turned_off_is_refused_by_name():
    with pytest.raises(ValueError, match=r"`block` \(Dropout\).*`deterministic`"):
        model_of(nn.Dropout(0.5, deterministic=False), weights="tied")

    class Noisy(nnx.Module):
        def __init__(self, rngs):
            self.dense, self.rngs = nnx.Linear(WIDTH, WIDTH, rngs=rngs), rngs.fork()

        def __call__(self, x):
            return self.dense(x) + jax.random.normal(self.rngs.params(), x.shape)

    with pytest.raises(ValueError, match=r"`block` \(Noisy\).*RngCount"):
        model_of(Noisy)


def test_models_without_dropout_are_the_same_in_training():
    for block in (LinenBlock(), NNXBlock, EquinoxBlock, lambda key: eqx.nn.Linear(6, 6, key=key)):
        assert model_of(block).training is None


# What is not alike, not an array, or no module.


def test_blocks_that_are_not_alike_are_refused_where_they_are_stacked():
    steep = NNXBlock(nnx.Rngs(1), slope=2.0)
    for blocks in (
        [NNXBlock(nnx.Rngs(0)), steep],
        [EquinoxBlock(jax.random.key(0)), EquinoxBlock(jax.random.key(0), slope=2.0)],
        [LinenBlock(), LinenBlock(slope=2.0)],
    ):
        with pytest.raises(ValueError, match=r"`block\[1\]`"):
            model_of(blocks, 2)
        model = model_of(blocks, 2, "list")
        assert run_all(model, model.init(jax.random.key(0))).shape == (2, 5, WIDTH)
    wide = [nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(0)), nnx.LayerNorm(WIDTH, rngs=nnx.Rngs(0))]
    with pytest.raises(ValueError, match=r"`block\[1\]`"):
        model_of(wide, 2)


def test_static_leaves_of_equinox_modules_are_kept():
    nets = [eqx.nn.MLP(WIDTH, WIDTH, 8, 1, key=jax.random.key(i)) for i in range(BLOCKS)]
    model = model_of(nets)
    state = STATE
    for net in nets:
        state = jax.vmap(net)(state)
    params = model.init(jax.random.key(0))
    np.testing.assert_allclose(run_all(model, params)[-1], state, rtol=1e-5, atol=1e-6)


class Buffer(eqx.Module):
    leaf: object

    def __call__(self, x):
        return x


@pytest.mark.parametrize("leaf", [jnp.arange(3), {1}])
def test_other_leaves_of_equinox_modules_are_refused_by_name(leaf):
    with pytest.raises((TypeError, ValueError), match=r"`block\.leaf`"):
        model_of(Buffer(leaf))


@pytest.mark.parametrize(
    "block",
    [3, None, "dense", (identity,), (1, 2), {"a": 1}],
)
def test_other_things_are_refused(block):
    with pytest.raises(TypeError, match="`block` must be a function"):
        model_of(block)


@pytest.mark.parametrize("make", [lambda rngs: 3, lambda key: 3])
def test_constructors_must_make_modules(make):
    with pytest.raises(TypeError, match=r"`block` takes `(rngs|key)`"):
        model_of(make)
