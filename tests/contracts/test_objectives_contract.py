"""What every objective must hold: unreduced, rows apart, finite gradients, dtype kept, one exit is
the plain loss.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynexit.methods.exits.confidence_exits import confidence_exits
from dynexit.methods.exits.fixed_depth import fixed_depth
from dynexit.methods.halting.act import act
from dynexit.methods.halting.pondernet import pondernet
from dynexit.objectives import weights
from dynexit.objectives.act import act_account, halting_sums
from dynexit.objectives.distillation import distilled_cross_entropy
from dynexit.objectives.multi_exit import deep_supervision, multi_exit_cross_entropy, weighted
from dynexit.objectives.ponder import geometric_last, kl_posterior_prior, ponder_loss

pytestmark = pytest.mark.typed

E, B, C = 4, 6, 5
DONE = jnp.float32(0.5)


def ponder(logits, labels, halting, divergence=kl_posterior_prior):
    return ponder_loss(
        multi_exit_cross_entropy(logits, labels),
        halting,
        geometric_last(len(logits), 0.3),
        0.01,
        divergence,
    ).loss


def dictionary(logits, halting):
    return {"logits": logits, "halt_logit": halting}


def averaged(logits, halting):
    """The mean answer of ACT in the place of the last exit's."""
    sums, wide = (
        halting_sums(jax.nn.sigmoid(halting.astype(jnp.float32))),
        logits.astype(jnp.float32),
    )
    mean = (act_account(sums).weights[..., None] * wide).sum(axis=0, keepdims=True)
    return {"logits": jnp.concatenate([wide[:-1], mean]), "accumulated": sums}


# Each takes logits [E, B, C], labels [B], halting logits [E, B], and gives [B].
OBJECTIVES = {
    "uniform": lambda z, y, h: deep_supervision(z, y, weights.uniform(len(z))),
    "linear": lambda z, y, h: deep_supervision(z, y, weights.linear(len(z))),
    "layerskip": lambda z, y, h: deep_supervision(z, y, weights.layerskip(len(z))),
    "distilled": lambda z, y, h: weighted(
        distilled_cross_entropy(z, y, 0.5, 2.0), weights.uniform(len(z))
    ),
    "ponder": ponder,
    "method confidence_exits": lambda z, y, h: confidence_exits(distill=0.5).objective(z, y, DONE)[
        0
    ],
    "method pondernet": lambda z, y, h: pondernet().objective(dictionary(z, h), y, DONE)[0],
    "method act": lambda z, y, h: act(tau=0.0).objective(averaged(z, h), y, DONE)[
        0
    ],  # the price is no mean of losses
    "method fixed_depth": lambda z, y, h: fixed_depth().objective(z, y, DONE)[0],
}
every = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())


def data(dtype=jnp.float32, scale=1.0, exits=E):
    keys = jax.random.split(jax.random.key(0), 3)
    logits = scale * jax.random.normal(keys[0], (exits, B, C))
    halting = scale * jax.random.normal(keys[1], (exits, B))
    return logits.astype(dtype), jax.random.randint(keys[2], (B,), 0, C), halting.astype(dtype)


@every
def test_gives_one_value_a_row_and_rows_do_not_meet(objective):
    logits, labels, halting = data()
    loss = objective(logits, labels, halting)
    assert loss.shape == (B,) and loss.dtype == jnp.float32
    order = jnp.array([3, 0, 5, 1, 4, 2])
    permuted = objective(logits[:, order], labels[order], halting[:, order])
    np.testing.assert_allclose(permuted, loss[order], rtol=1e-6)
    alone = objective(logits[:, 2:3], labels[2:3], halting[:, 2:3])
    np.testing.assert_allclose(alone, loss[2:3], rtol=1e-5)


@every
@pytest.mark.parametrize("scale", [1.0, 1e3, 1e5])
def test_gradients_are_finite(objective, scale):
    logits, labels, halting = data(scale=scale)
    loss, gradients = jax.jit(
        jax.value_and_grad(lambda z, h: objective(z, labels, h).sum(), argnums=(0, 1))
    )(logits, halting)
    assert jnp.isfinite(loss)
    for g in gradients:
        assert jnp.isfinite(g).all()
    assert jnp.abs(gradients[0]).max() > 0


@every
def test_half_precision_is_computed_in_float32_and_its_gradients_stay_half(objective):
    logits, labels, halting = data(jnp.bfloat16)
    loss = objective(logits, labels, halting)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(
        loss, objective(logits.astype(jnp.float32), labels, halting.astype(jnp.float32)), rtol=1e-6
    )
    assert jax.grad(lambda z: objective(z, labels, halting).sum())(logits).dtype == jnp.bfloat16


@every
def test_one_exit_is_the_plain_loss(objective):
    logits, labels, halting = data(exits=1)
    wanted = optax.softmax_cross_entropy_with_integer_labels(logits[0], labels)
    np.testing.assert_allclose(objective(logits, labels, halting), wanted, rtol=1e-5, atol=1e-6)


@every
def test_exits_that_agree_give_the_plain_loss_when_weights_sum_to_one(objective):
    logits, labels, halting = data()
    alike = jnp.broadcast_to(logits[:1], logits.shape)
    plain = optax.softmax_cross_entropy_with_integer_labels(logits[0], labels)
    none = jnp.zeros_like(plain)
    extra = {  # what is no weighted mean of the exits' losses
        OBJECTIVES["distilled"]: -0.5
        * (E - 1)
        / E
        * plain,  # identical exits have nothing to learn from the teacher
        OBJECTIVES["ponder"]: 0.01
        * ponder_loss(
            jnp.zeros((E, B)), halting, geometric_last(E, 0.3), 0.0, kl_posterior_prior
        ).kl,
        OBJECTIVES["method pondernet"]: 0.01
        * ponder_loss(jnp.zeros((E, B)), halting, geometric_last(E, 0.2), 0.0).kl,
    }.get(objective, none)
    np.testing.assert_allclose(
        objective(alike, labels, halting), plain + extra, rtol=1e-5, atol=1e-5
    )


@every
def test_compiles_once(objective):
    compiled = jax.jit(objective)
    logits, labels, halting = data()
    first, second = compiled(logits, labels, halting), compiled(2 * logits, labels, halting)
    assert compiled._cache_size() == 1 and not jnp.array_equal(first, second)
