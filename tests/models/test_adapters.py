"""Modules of one's own: the adapted block is the module, the engine takes it, and what cannot be
pure is refused.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracle import leave_at

import dynexit as dx
from dynexit.models.adapters import from_linen, from_nnx

WIDTH, BLOCKS = 6, 4
STATE = jax.random.normal(jax.random.key(7), (5, WIDTH))


class LinenBlock(nn.Module):
    slope: float = 1.0

    @nn.compact
    def __call__(self, x):
        return x + nn.tanh(self.slope * nn.Dense(WIDTH, name="inner")(nn.LayerNorm(name="norm")(x)))


class NNXBlock(nnx.Module):
    def __init__(self, seed, slope=1.0, width=2 * WIDTH):
        rngs = nnx.Rngs(seed)
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


def linen():
    module = LinenBlock()
    variables = [module.init(jax.random.key(i), STATE) for i in range(BLOCKS)]
    return [lambda x, v=v: module.apply(v, x) for v in variables], from_linen(module, variables)


def nnx_():
    blocks = [NNXBlock(i) for i in range(BLOCKS)]
    return blocks, from_nnx(blocks)


KINDS = pytest.mark.parametrize("kind", [linen, nnx_])


def read(p, state):
    return state


@KINDS
def test_blocks_one_after_the_other_give_what_the_engine_gives(kind):
    blocks, adapted = kind()
    step = dx.stacked_step(adapted.apply, read, adapted.params)
    outputs = dx.run_all(step, STATE, BLOCKS)
    depths = [4, 1, 2, 3, 1]
    halted = dx.run_until(step, STATE, BLOCKS, leave_at(depths), executor="compacted", tile=2)
    state = STATE
    for i, block in enumerate(blocks):
        state = block(state)
        np.testing.assert_allclose(outputs[i], state, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        halted.output, outputs[jnp.array(depths) - 1, jnp.arange(5)], rtol=1e-5, atol=1e-6
    )
    assert len(np.unique(np.asarray(outputs[:, 0, 0]))) == BLOCKS


@KINDS
def test_parameters_are_plain_dicts_of_arrays(kind):
    _, adapted = kind()

    def plain(tree):
        assert type(tree) is dict or isinstance(tree, jax.Array)
        return (
            all(plain(child) for child in tree.values())
            if isinstance(tree, dict)
            else tree.shape[0] == BLOCKS
        )

    assert plain(adapted.params)
    dx.check_row_independence(dx.stacked_step(adapted.apply, read, adapted.params), STATE)


@KINDS
def test_gradient_is_that_of_the_module(kind):
    """Central differences along the gradient, through the whole depth."""
    _, adapted = kind()
    loss = lambda params: (
        dx.run_all(dx.stacked_step(adapted.apply, read, params), STATE, BLOCKS) ** 2
    ).sum()
    gradient = jax.grad(loss)(adapted.params)
    leaves = jax.tree.leaves(gradient)
    assert all(float(jnp.abs(g).max()) > 0 for g in leaves)
    norm = float(jnp.sqrt(sum(jnp.vdot(g, g) for g in leaves)))
    at = lambda h: float(
        loss(jax.tree.map(lambda a, g: a + h / norm * g, adapted.params, gradient))
    )
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
        _, adapted = kind()
        run(dx.stacked_step(adapted.apply, read, adapted.params), STATE)
    assert traces == 1


@pytest.mark.parametrize("kind", [linen, nnx_])
def test_a_single_module_is_not_stacked(kind):
    blocks, many = kind()
    if kind is linen:
        one = from_linen(LinenBlock(), LinenBlock().init(jax.random.key(0), STATE))
    else:
        one = from_nnx(NNXBlock(0))
    jax.tree.map(np.testing.assert_array_equal, one.params, dx.take(many.params, 0))
    np.testing.assert_allclose(one.apply(one.params, STATE), blocks[0](STATE), rtol=1e-5, atol=1e-6)
    tied = dx.run_all(dx.tied_step(one.apply, read, one.params), STATE, 2)
    np.testing.assert_allclose(tied[1], blocks[0](blocks[0](STATE)), rtol=1e-5, atol=1e-6)


def test_a_later_change_of_the_module_is_not_seen():
    block = NNXBlock(0)
    adapted = from_nnx(block)
    before = adapted.apply(adapted.params, STATE)
    block.layers[1].kernel[...] = jnp.zeros((2 * WIDTH, WIDTH))
    np.testing.assert_array_equal(adapted.apply(adapted.params, STATE), before)
    assert not np.allclose(block(STATE), before)


def test_partitioned_parameters_are_unboxed():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    module = nn.Dense(WIDTH, kernel_init=init)
    adapted = from_linen(module, module.init(jax.random.key(0), STATE))
    assert isinstance(adapted.params["kernel"], jax.Array)
    assert adapted.apply(adapted.params, STATE).shape == (5, WIDTH)


def test_linen_batch_statistics_are_refused():
    module = nn.BatchNorm(use_running_average=False)
    variables = module.init(jax.random.key(0), STATE)
    with pytest.raises(
        ValueError,
        match=r"`variables` must have the collection \"params\" alone, got \['batch_stats', 'params'\]",
    ):
        from_linen(module, variables)
    good = nn.Dense(WIDTH).init(jax.random.key(0), STATE)
    with pytest.raises(
        ValueError,
        match=r"`variables\[1\]` must have .* normalise within a row instead \(LayerNorm, GroupNorm\)",
    ):
        from_linen(nn.Dense(WIDTH), [good, variables])


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (lambda: nnx.BatchNorm(WIDTH, rngs=nnx.Rngs(0)), r"mean \(BatchStat\), var \(BatchStat\)"),
        (
            lambda: nnx.Dropout(0.1, rngs=nnx.Rngs(0)),
            r"rngs\.count \(RngCount\), rngs\.key \(RngKey\)",
        ),
    ],
)
def test_nnx_state_that_calls_change_is_refused(module, text):
    with pytest.raises(ValueError, match=r"`block` \(\w+\) must hold nnx.Param alone, got " + text):
        from_nnx(module())


def test_blocks_that_are_not_alike_are_refused():
    with pytest.raises(ValueError, match=r"`block\[1\]` \(NNXBlock\) must be like `block\[0\]`"):
        from_nnx([NNXBlock(0), NNXBlock(1, slope=2.0)])
    with pytest.raises(ValueError, match=r"`block\[2\]` \(NNXBlock\) must be like `block\[0\]`"):
        from_nnx([NNXBlock(0), NNXBlock(1), NNXBlock(2, width=3)])
    module, wide = nn.Dense(WIDTH), nn.Dense(WIDTH + 1)
    with pytest.raises(
        ValueError,
        match=r"`blocks\[1\]\['bias'\]` is float32\[7\], in `blocks\[0\]` it is float32\[6\]",
    ):
        from_linen(
            module, [module.init(jax.random.key(0), STATE), wide.init(jax.random.key(0), STATE)]
        )


@pytest.mark.parametrize("adapt", [lambda: from_nnx([]), lambda: from_linen(nn.Dense(3), [])])
def test_no_blocks_are_refused(adapt):
    with pytest.raises(ValueError, match="`blocks` must hold at least one block, got none"):
        adapt()
