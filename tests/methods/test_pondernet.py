"""PonderNet: metrics against loops, the golden Q-exit, and a calibration over the quantiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stored

from dynexit.calibration.rules.accept_loss import accept_loss
from dynexit.engine.replay import replay
from dynexit.methods.halting.pondernet import pondernet
from dynexit.objectives.multi_exit import multi_exit_cross_entropy
from dynexit.objectives.ponder import geometric_renormalised, kl_posterior_prior, ponder_loss

N, B, C = 6, 200, 4
COSTS = np.arange(1.0, N + 1)
PROGRESS = jnp.float32(1.0)


def synthetic():
    """Row b can be answered from step needed[b] on, and its halting logits half know it."""
    keys = jax.random.split(jax.random.key(0), 4)
    labels = jax.random.randint(keys[0], (B,), 0, C)
    needed = jax.random.randint(keys[1], (B,), 0, N)
    ready = (jnp.arange(N)[:, None] >= needed[None]).astype(jnp.float32)
    logits = 8 * ready[..., None] * jax.nn.one_hot(labels, C)[None] + jax.random.normal(
        keys[2], (N, B, C)
    )
    return {
        "logits": logits,
        "halt_logit": 6 * ready - 4 + jax.random.normal(keys[3], (N, B)),
    }, labels


OUTPUTS, LABELS = synthetic()


def q_exit(logits, q):
    """A loop over one row's steps."""
    survival = 1.0
    for n, z in enumerate(logits):
        survival *= 1 - 1 / (1 + np.exp(-z))
        if 1 - survival > q or n == len(logits) - 1:
            return n
    raise AssertionError


def test_golden_q_exits():
    rate = np.array([0.2, 0.5, 0.5, 0.9])
    outputs = {
        "logits": jnp.zeros((4, 1, C)),
        "halt_logit": jnp.float32(np.log(rate / (1 - rate)))[:, None],
    }
    method = pondernet()
    steps = [
        int(replay(method.criterion({"quantile": jnp.float32(q)}), outputs).exit[0]) + 1
        for q in (0.5, 0.59, 0.61)
    ]
    assert steps == [2, 2, 3]
    metrics = method.objective(outputs, jnp.array([0]), PROGRESS)[1]
    np.testing.assert_allclose([metrics["mean_steps"], metrics["q_steps"]], [2.4, 2.0], rtol=1e-6)


def test_objective_and_metrics_are_the_loop():
    method = pondernet(0.3, 0.05, geometric_renormalised, kl_posterior_prior)
    loss, metrics = jax.jit(method.objective)(OUTPUTS, LABELS, PROGRESS)
    losses = multi_exit_cross_entropy(OUTPUTS["logits"], LABELS)
    wanted = ponder_loss(
        losses, OUTPUTS["halt_logit"], geometric_renormalised(N, 0.3), 0.05, kl_posterior_prior
    )
    np.testing.assert_allclose(loss, wanted.loss, rtol=1e-5)
    halting, classes, labels = (
        np.asarray(OUTPUTS["halt_logit"]),
        np.asarray(OUTPUTS["logits"].argmax(-1)),
        np.asarray(LABELS),
    )
    exits = np.array([q_exit(halting[:, b], 0.5) for b in range(B)])
    oracle = {
        "expected_loss": wanted.expected_loss.mean(),
        "kl": wanted.kl.mean(),
        "mean_steps": wanted.mean_steps.mean(),
        "halting_entropy": wanted.entropy.mean(),
        "q_accuracy": (classes[exits, np.arange(B)] == labels).mean(),
        "q_steps": (exits + 1).mean(),
        "q_at_limit": (exits == N - 1).mean(),
        "accuracy_exit_first": (classes[0] == labels).mean(),
        "accuracy_exit_last": (classes[-1] == labels).mean(),
    }
    assert oracle.keys() == metrics.keys() and len(set(exits.tolist())) == N
    for name, value in oracle.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
        assert metrics[name].dtype == jnp.float32 and metrics[name].shape == ()


def test_candidates_go_from_the_first_step_to_full_depth():
    method = pondernet()
    found = stored.curve_of(method, OUTPUTS, LABELS, COSTS)
    points = found.points
    assert found.mean_depth[0] == 1 and found.mean_depth[-1] == N
    assert (np.diff(found.mean_depth) >= 0).all()
    halting = np.asarray(OUTPUTS["halt_logit"])
    for k in (5, 20, 35):
        q = float(points["quantile"][k])
        np.testing.assert_allclose(
            found.mean_depth[k], np.mean([q_exit(halting[:, b], q) + 1 for b in range(B)])
        )


def test_calibration_end_to_end():
    method = pondernet()
    choice = stored.chosen(method, OUTPUTS, LABELS, COSTS, accept_loss(0.02))
    assert choice.accuracy >= choice.accuracy_full - 0.02 - 1e-9 and choice.cost_fraction < 0.95
    assert 0 < choice.operating_point["quantile"] < 1


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"prior_rate": 0.0}, "`rate` must lie between 0 and 1, both excluded, got 0.0"),
        ({"beta": -0.1}, "`beta` must be at least 0, got -0.1"),
        ({"quantiles": [-0.1, 1.0]}, "lie in 0..1"),
    ],
)
def test_refusals(arguments, text):
    with pytest.raises(ValueError) as error:
        pondernet(**arguments)
    assert text in str(error.value)
