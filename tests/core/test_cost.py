"""Costs against sums by hand and against unrolled programs."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from dynexit.core.cost import cost_of


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
