"""The checker of the one law (rows are independent), stacking, and the argument checks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import dynexit as dx
from dynexit.core.checks import positive_integer


def test_independent_rows_pass():
    for problem in (oracle.homogeneous(), oracle.tied()):
        dx.check_row_independence(problem.step, problem.state, i=2)


@pytest.mark.parametrize(
    ("apply", "where"),
    [
        (lambda w, i, h: (h - h.mean(axis=0, keepdims=True), h), "state"),
        (lambda w, i, h: (h, jax.nn.softmax(h, axis=0)), "output"),
        (lambda w, i, h: (h, jnp.cumsum(h, axis=0)), "output"),
        (lambda w, i, h: (h + jnp.arange(h.shape[0], dtype=h.dtype)[:, None], h), "state"),
    ],
    ids=["batch mean", "softmax over rows", "running sum", "depends on the place"],
)
def test_coupled_rows_are_refused(apply, where):
    state = jax.random.normal(jax.random.key(0), (6, 3))
    with pytest.raises(
        ValueError,
        match=rf"`step` couples rows: (permuting|splitting) the batch changed row \d of {where}",
    ):
        dx.check_row_independence(dx.Step(lambda i: (), apply), state)


@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("out", [None, jnp.float32])
def test_rounding_is_not_taken_for_coupling(kind, out):
    """Attention within each row, whose sums are rounded otherwise in another batch."""

    def block(p, h):
        scores = jax.nn.softmax(jnp.einsum("btd,bsd->bts", h @ p, h) / 16, -1)
        return h + jnp.einsum("bts,bsd->btd", scores, h @ p)

    weights = (jax.random.normal(jax.random.key(0), (2, 256, 256)) / 16).astype(kind)
    state = jax.random.normal(jax.random.key(1), (16, 16, 256)).astype(kind)
    head = lambda p, h: (h.mean(1) @ p[:, :10]).astype(out or kind)
    dx.check_row_independence(dx.stacked_step(block, head, weights), state)
    coupled = lambda p, h: head(p, h) + h.astype(out or kind).mean((0, 1))[None, :10]
    with pytest.raises(ValueError, match="`step` couples rows"):
        dx.check_row_independence(dx.stacked_step(block, coupled, weights), state)


@pytest.mark.parametrize("leaf", [jnp.tanh, "relu", object()])
def test_leaves_that_are_no_arrays_are_named(leaf):
    tree = {"w": jnp.ones((2, 3)), "activation": leaf}
    block = lambda p, h: h
    for make in (
        lambda: dx.stack([tree, tree]),
        lambda: dx.stacked_step(block, block, tree),
        lambda: dx.switched_step(block, block, [tree, tree]),
        lambda: dx.tied_step(block, block, tree),
    ):
        with pytest.raises(TypeError, match=r"`\w+(\[\d\])?`.*\['activation'\]"):
            make()
    step = dx.Step(lambda i: (), lambda w, i, h: (h, h), depth=2)
    for run in (dx.run_all, dx.run_full):
        with pytest.raises(TypeError, match=r"`state`\['activation'\]"):
            run(step, tree)


def test_one_row_cannot_be_tested():
    with pytest.raises(ValueError, match="at least 2 rows"):
        dx.check_row_independence(dx.Step(lambda i: (), lambda w, i, h: (h, h)), jnp.zeros((1, 3)))


def test_stack_take_unstack():
    blocks = [{"w": jnp.full((2,), float(k)), "b": jnp.int32(k)} for k in range(4)]
    stacked = dx.stack(blocks)
    assert stacked["w"].shape == (4, 2) and stacked["b"].shape == (4,)
    chex.assert_trees_all_equal(jax.jit(dx.take)(stacked, jnp.int32(2)), blocks[2])
    chex.assert_trees_all_equal(dx.unstack(stacked), blocks)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([], "`blocks` must hold at least one block, got none"),
        ([{"w": jnp.zeros(2)}, {"v": jnp.zeros(2)}], r"`blocks\[1\]` has structure"),
        (
            [{"w": jnp.zeros(2)}, {"w": jnp.zeros(3)}],
            r"`blocks\[1\]\['w'\]` is float32\[3\], in `blocks\[0\]` it is float32\[2\]",
        ),
        (
            [{"w": jnp.zeros(2)}, {"w": jnp.zeros(2, jnp.bfloat16)}],
            r"`blocks\[1\]\['w'\]` is bfloat16\[2\]",
        ),
    ],
)
def test_blocks_that_are_not_alike_are_refused(blocks, message):
    with pytest.raises(ValueError, match=message):
        dx.stack(blocks)


def test_unequal_stacks_are_refused():
    with pytest.raises(
        ValueError, match=r"leading axes differ: `params`\['a'\] has 2, `params`\['b'\] has 3"
    ):
        dx.stacked_step(oracle.block, oracle.head, {"a": jnp.zeros(2), "b": jnp.zeros(3)})
    with pytest.raises(ValueError, match=r"`params`\['a'\] is a scalar"):
        dx.stacked_step(oracle.block, oracle.head, {"a": jnp.zeros(())})
    with pytest.raises(ValueError, match="`params` holds no arrays"):
        dx.stacked_step(oracle.block, oracle.head, {})


def test_positive_integer():
    assert positive_integer(np.int64(3), "n") == 3
    with pytest.raises(TypeError, match="`n` must be a Python integer, got bool True"):
        positive_integer(True, "n")
