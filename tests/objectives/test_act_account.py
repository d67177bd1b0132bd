"""The quantities of ACT: golden numbers, a loop over rows and positions, and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.objectives.act import act_account, halting_sums


def account_of(halting, epsilon=0.01):
    return act_account(halting_sums(jnp.asarray(halting, jnp.float32), epsilon))


def loop(p, epsilon):
    """Weights, updates and remainder of one position."""
    used, weights, updates, remainder = 0.0, [], 0, None
    for n, probability in enumerate(p):
        if remainder is not None:
            weights.append(0.0)
            continue
        updates += 1
        if used + probability > 1 - epsilon or n == len(p) - 1:
            remainder = 1 - used
            weights.append(remainder)
        else:
            weights.append(probability)
            used += probability
    return weights, updates, remainder


def test_golden_three_steps():
    account = account_of(np.array([[0.3], [0.4], [0.5], [0.9]]))
    np.testing.assert_allclose(account.weights[:, 0], [0.3, 0.4, 0.3, 0.0], atol=1e-6)
    np.testing.assert_allclose([account.remainder[0], account.ponder[0]], [0.3, 3.3], rtol=1e-6)
    assert account.updates.tolist() == [3] and account.at_limit.tolist() == [False]


def test_golden_constant_probability():
    account = account_of(np.full((12, 1), 0.269))
    assert account.updates.tolist() == [4]
    np.testing.assert_allclose([account.remainder[0], account.ponder[0]], [0.193, 4.193], atol=1e-6)


def test_golden_remainder_at_the_step_limit():
    """The weights of both public versions sum to 0.4 here."""
    account = account_of(np.full((8, 1), 0.05))
    np.testing.assert_allclose(account.weights[:, 0], [0.05] * 7 + [0.65], atol=1e-6)
    np.testing.assert_allclose(account.weights.sum(axis=0), 1.0, rtol=1e-6)
    assert account.updates.tolist() == [8] and account.at_limit.tolist() == [True]


def test_golden_halting_at_the_first_step():
    account = account_of(np.array([[1.0], [0.3], [0.3]]))
    np.testing.assert_array_equal(account.weights[:, 0], [1.0, 0.0, 0.0])
    assert float(account.ponder[0]) == 2.0 and account.updates.tolist() == [1]


@pytest.mark.parametrize("epsilon", [0.01, 0.3])
def test_matches_the_loop_at_every_position(epsilon):
    halting = jax.random.uniform(jax.random.key(0), (6, 5, 3)) ** 2
    account = account_of(halting, epsilon)
    p = np.asarray(halting, np.float64)
    for b in range(5):
        for k in range(3):
            weights, updates, remainder = loop(p[:, b, k], epsilon)
            np.testing.assert_allclose(account.weights[:, b, k], weights, atol=1e-6)
            np.testing.assert_allclose(account.remainder[b, k], remainder, atol=1e-6)
            np.testing.assert_allclose(account.ponder[b, k], updates + remainder, atol=1e-6)
            assert int(account.updates[b, k]) == updates
            assert bool(account.at_limit[b, k]) == (p[:, b, k].cumsum()[-1] <= 1 - epsilon)
    assert len(np.unique(account.updates)) > 3 and account.at_limit.any() != account.at_limit.all()


def test_weights_sum_to_one_for_any_probabilities():
    for halting in (
        jnp.zeros((5, 2)),
        jnp.ones((5, 2)),
        jax.random.uniform(jax.random.key(1), (5, 2)),
        jnp.full((1, 2), 0.2),
    ):
        np.testing.assert_allclose(account_of(halting).weights.sum(axis=0), 1.0, atol=1e-6)


def test_golden_gradient_of_ponder():
    halting = jnp.array([[0.3, 0.9], [0.4, 0.5], [0.5, 0.5], [0.5, 0.5]])  # halt at 3 and at 2
    ponder = lambda p: account_of(p).ponder.sum()
    wanted = np.array([[-1.0, -1.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(jax.grad(ponder)(halting), wanted)
    for k in range(4):
        for b in range(2):
            step = np.zeros((4, 2), np.float32)
            step[k, b] = 1e-2
            slope = (ponder(halting + step) - ponder(halting - step)) / 2e-2
            np.testing.assert_allclose(slope, wanted[k, b], atol=1e-4)


def test_ponder_has_no_gradient_if_it_is_constant():
    """Halting at the first step, and a limit of one step."""
    ponder = lambda p: account_of(p).ponder.sum()
    np.testing.assert_array_equal(jax.grad(ponder)(jnp.array([[1.0], [0.5]])), [[0.0], [0.0]])
    np.testing.assert_array_equal(jax.grad(ponder)(jnp.array([[0.2]])), [[0.0]])


def test_gradient_of_a_weighted_mean():
    """w_n = p_n before the halting step, 1 - sum p at it: d/dp_k of sum w y is y_k - y_halt."""
    y = jnp.array([[2.0], [5.0], [-1.0], [7.0]])
    slope = jax.grad(lambda p: (account_of(p).weights * y).sum())(
        jnp.array([[0.3], [0.4], [0.5], [0.5]])
    )
    np.testing.assert_allclose(slope[:, 0], [2.0 + 1.0, 5.0 + 1.0, 0.0, 0.0], atol=1e-6)


def test_half_precision_accumulates_in_float32():
    p = jnp.full((300, 1), 1 / 256, jnp.bfloat16)  # sums in bfloat16 stick at 1/2
    account = act_account(halting_sums(p))
    assert account.updates.tolist() == [254] and account.weights.dtype == jnp.float32


@pytest.mark.parametrize(
    "call, argument",
    [
        (lambda: halting_sums(jnp.zeros(3)), "halting"),
        (lambda: halting_sums(jnp.zeros((3, 1)), 0.0), "epsilon"),
        (lambda: act_account(jnp.zeros((0, 2))), "sums"),
    ],
)
def test_invalid_arguments(call, argument):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        call()
