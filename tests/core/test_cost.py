"""Costs against sums done by hand and against unrolled programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dynexit.core.cost import Costs, cost_of, cumulative, step_costs
from dynexit.core.types import Step
from dynexit.engine.steps import stacked_step, switched_step

D, C = 16, 5


def block(p, h):
    return h + jnp.maximum(h @ p["in"], 0.0) @ p["out"]


def head(p, h):
    return h @ p["head"]


def parameters(n, width=D):
    one = {
        "in": jnp.zeros((width, 4 * width)),
        "out": jnp.zeros((4 * width, width)),
        "head": jnp.zeros((width, C)),
    }
    return [one] * n


def flops_by_hand(width=D):
    matmuls = 2 * width * 4 * width * 2 + 2 * width * C
    return matmuls + 4 * width + width  # the maximum and the residual sum, one operation an element


def test_a_multiply_add_is_two_flops_and_shapes_are_enough():
    x, w = jax.ShapeDtypeStruct((8, 32), jnp.float32), jax.ShapeDtypeStruct((32, 6), jnp.float32)
    cost = cost_of(jnp.dot, x, w)
    assert cost.flops == 2 * 8 * 32 * 6
    assert cost.bytes == 4 * (8 * 32 + 32 * 6 + 8 * 6)
    assert cost_of(jnp.dot, jnp.ones((8, 32)), jnp.ones((32, 6))) == cost


def test_a_program_without_arithmetic_costs_no_flops():
    assert cost_of(lambda x: x, jnp.ones(3)).flops == 0.0


def test_work_that_nobody_reads_is_not_counted():
    x, w = jnp.ones((4, 8)), jnp.ones((8, 8))
    assert cost_of(lambda x, w: (x @ w, (x @ w) @ w)[0], x, w).flops == 2 * 4 * 8 * 8


def unrolled(x, w, trips):
    for _ in range(trips):
        x = x @ w
    return x


@pytest.mark.parametrize("trips", [1, 2, 6])
def test_a_scan_counts_by_its_length(trips):
    x, w = jnp.ones((8, 64)), jnp.ones((64, 64))
    scanned = lambda x, w: lax.scan(lambda x, _: (x @ w, None), x, None, length=trips)[0]
    nested = lambda x, w: jax.jit(lambda x: lax.fori_loop(0, 2, lambda i, x: scanned(x, w), x))(x)
    one = 2 * 8 * 64 * 64
    assert cost_of(lambda x, w: unrolled(x, w, trips), x, w).flops == trips * one
    assert cost_of(scanned, x, w).flops == pytest.approx(trips * one, rel=0.001)
    assert cost_of(nested, x, w).flops == pytest.approx(2 * trips * one, rel=0.001)


@pytest.mark.parametrize("trips", [2, 6])
def test_a_while_body_counts_once_so_steps_are_multiplied_outside(trips):
    x, w = jnp.ones((8, 64)), jnp.ones((64, 64))
    looped = lambda x, w: lax.while_loop(
        lambda c: c[0] < trips, lambda c: (c[0] + 1, c[1] @ w), (0, x)
    )[1]
    one = 2 * 8 * 64 * 64
    assert (
        one <= cost_of(looped, x, w).flops <= 1.01 * one
    )  # and a little arithmetic of the counter
    assert cost_of(lambda x, w: unrolled(x, w, trips), x, w).flops == trips * one


def test_a_step_of_several_blocks_costs_all_of_them():
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *parameters(6))
    one, three = (
        step_costs(stacked_step(block, head, stacked, blocks=k), jnp.zeros((1, D)), 6).flops
        for k in (1, 3)
    )
    only_head = 2 * D * C
    assert one.shape == (6,) and three.shape == (2,)
    np.testing.assert_allclose(three - only_head, 3 * (one[0] - only_head), rtol=0.01)


@pytest.mark.parametrize(
    "make", [lambda p: stacked_step(block, head, jax.tree.map(lambda *a: jnp.stack(a), *p)), None]
)
def test_step_costs_equal_the_unrolled_program(make):
    blocks = parameters(4)
    step = (make or (lambda p: switched_step(block, head, p)))(blocks)
    costs = step_costs(step, jnp.zeros((3, D)), depth=4)

    def unrolled(blocks, h):
        outputs = []
        for p in blocks:
            h = block(p, h)
            outputs.append(head(p, h))
        return outputs

    whole = cost_of(unrolled, blocks, jnp.zeros((8, D))).flops / 8
    assert costs.flops.shape == costs.bytes.shape == (4,)
    np.testing.assert_allclose(
        costs.flops, flops_by_hand(), rtol=0.01
    )  # picking the weights costs a few operations
    np.testing.assert_allclose(costs.flops.sum(), whole, rtol=0.01)


def test_stages_of_different_width_are_walked():
    narrow, wide = parameters(1, D)[0], parameters(1, 2 * D)[0]
    first = Step(lambda i: narrow, lambda p, i, h: (block(p, h), head(p, h)))
    widen = Step(
        lambda i: wide,
        lambda p, i, h: (block(p, jnp.concatenate([h, h], 1)), head(p, jnp.concatenate([h, h], 1))),
    )
    last = Step(lambda i: wide, lambda p, i, h: (block(p, h), head(p, h)))
    costs = step_costs(
        (first, widen, last), jax.ShapeDtypeStruct((1, D), jnp.float32), depth=(2, 1, 2)
    )
    assert costs.flops.shape == (5,)
    assert costs.flops[0] == costs.flops[1] == flops_by_hand(D)
    np.testing.assert_array_equal(costs.flops[2:], flops_by_hand(2 * D))
    assert (np.diff(costs.bytes)[[1]] > 0).all()


def test_a_row_pays_less_of_the_weights_in_a_larger_batch():
    step = Step(lambda i: parameters(1)[0], lambda p, i, h: (block(p, h), head(p, h)))
    few, many = (step_costs(step, jnp.zeros((1, D)), depth=1, rows=rows) for rows in (1, 64))
    np.testing.assert_array_equal(few.flops, many.flops)
    assert many.bytes[0] < few.bytes[0]


def test_cumulative():
    costs = cumulative(Costs(np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 5.0])))
    np.testing.assert_array_equal(costs.flops, [3, 4, 6])
    np.testing.assert_array_equal(costs.bytes, [1, 2, 7])


def test_refusals():
    step = Step(lambda i: (), lambda w, i, h: (h, h))
    with pytest.raises(ValueError, match="`rows` must be at least 1, got 0"):
        step_costs(step, jnp.zeros((1, D)), depth=1, rows=0)
    with pytest.raises(ValueError, match="`depth` must be at least 1, got 0"):
        step_costs(step, jnp.zeros((1, D)), depth=0)
