"""ACT as a method: loss and metrics against a loop over rows and places, its exits, a calibration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stored

from dynexit.calibration.rules.accept_loss import accept_loss
from dynexit.methods.halting.act import act
from dynexit.objectives.act import act_account, halting_sums

N, B, L, C = 6, 120, 3, 4
COSTS = np.arange(1.0, N + 1)
PROGRESS = jnp.float32(1.0)


def averaged_outputs(halting, y, epsilon=0.01):
    """What an averaged step gives at every step, from all steps at once: the mean so far and the
    rest on this step.
    """
    sums = halting_sums(halting, epsilon)
    before = jnp.concatenate([jnp.zeros_like(sums[:1]), sums[:-1]])
    w = (sums - before)[..., None]
    mean = jnp.cumsum(w * y, axis=0) - w * y
    gate = sums.reshape(*sums.shape[:2], -1).min(axis=-1)
    return {"logits": mean + (1 - before)[..., None] * y, "accumulated": sums, "gate": gate}


def synthetic(places):
    """Place k of row b can be answered from step needed on, and the halting probabilities half know
    it.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    labels = jax.random.randint(keys[0], (B, *places), 0, C)
    needed = jax.random.randint(keys[1], (B, *places), 0, N)
    steps = jnp.arange(N).reshape((N,) + (1,) * needed.ndim)
    ready = (steps >= needed[None]).astype(jnp.float32)
    y = 3 * ready[..., None] * jax.nn.one_hot(labels, C)[None] + jax.random.normal(
        keys[2], (N, B, *places, C)
    )
    halting = jax.nn.sigmoid(5 * ready - 3.5 + jax.random.normal(keys[3], ready.shape))
    return halting, averaged_outputs(halting, y), labels


@pytest.mark.parametrize("places", [(), (L,)])
def test_objective_and_metrics_are_the_loop(places):
    halting, outputs, labels = synthetic(places)
    loss, metrics = jax.jit(act(tau=0.3).objective)(outputs, labels, PROGRESS)
    logits = np.asarray(outputs["logits"], np.float64).reshape(N, B, -1, C)
    p, wanted = np.asarray(halting, np.float64).reshape(N, B, -1), np.asarray(labels).reshape(B, -1)
    losses, ponders, updates, limit, right = (
        np.zeros((B, p.shape[2])),
        *(np.zeros((B, p.shape[2])) for _ in range(4)),
    )
    for b in range(B):
        for k in range(p.shape[2]):
            spent, n = 0.0, 0
            while n < N - 1 and spent + p[n, b, k] <= 0.99:
                spent += p[n, b, k]
                n += 1
            z = logits[n, b, k]
            losses[b, k] = np.log(np.exp(z - z.max()).sum()) + z.max() - z[wanted[b, k]]
            ponders[b, k], updates[b, k] = n + 1 + 1 - spent, n + 1
            limit[b, k] = n == N - 1 and spent + p[n, b, k] <= 0.99
            right[b, k] = z.argmax() == wanted[b, k]
    np.testing.assert_allclose(loss, (losses + 0.3 * ponders).mean(axis=1), rtol=1e-4, atol=1e-5)
    oracle = {
        "ponder": ponders.mean(),
        "mean_steps": updates.mean(),
        "row_steps": updates.max(axis=1).mean(),
        "at_limit": limit.any(axis=1).mean(),
        "accuracy_halted": right.all(axis=1).mean(),
        "accuracy_exit_first": (logits[0].argmax(-1) == wanted).all(axis=1).mean(),
    }
    assert (
        oracle.keys() == metrics.keys()
        and 0 < oracle["at_limit"] < 1
        and 0.1 < oracle["accuracy_halted"] < 1
    )
    for name, value in oracle.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
        assert metrics[name].dtype == jnp.float32 and metrics[name].shape == ()


def test_the_price_pushes_every_probability_before_the_halting_step():
    halting = jnp.full((N, 1), 0.2)  # halts at 5

    def loss(halting, tau):
        outputs = averaged_outputs(
            halting, jnp.zeros((N, 1, C))
        )  # answers that are alike: no gradient but the price's
        return act(tau).objective(outputs, jnp.array([0]), PROGRESS)[0].sum()

    np.testing.assert_allclose(
        jax.grad(loss)(halting, 0.5)[:, 0], [-0.5] * 4 + [0.0] * 2, atol=1e-6
    )
    np.testing.assert_allclose(jax.grad(loss)(halting, 0.0), 0.0, atol=1e-6)


def test_one_step_is_the_plain_loss_and_the_least_price():
    outputs = averaged_outputs(jnp.full((1, 2), 0.3), jnp.zeros((1, 2, C)))
    loss, metrics = act(tau=0.1).objective(outputs, jnp.array([0, 1]), PROGRESS)
    np.testing.assert_allclose(loss, np.log(C) + 0.2, rtol=1e-6)
    assert float(metrics["ponder"]) == 2.0


@pytest.mark.parametrize("places", [(), (L,)])
def test_candidates_go_from_the_first_step_to_full_depth(places):
    method, (_, outputs, labels) = act(), synthetic(places)
    found = stored.curve_of(method, outputs, labels, COSTS)
    assert found.mean_depth[0] == 1 and found.mean_depth[-1] == N
    assert (np.diff(found.mean_depth) >= 0).all()
    steps = np.asarray(act_account(outputs["accumulated"]).updates).reshape(B, -1).max(axis=1)
    np.testing.assert_allclose(found.mean_depth[-2], steps.mean())  # 0.99, the model's own
    assert found.accuracy[-2] == found.accuracy[-1]


def test_calibration_end_to_end():
    method, (_, outputs, labels) = act(), synthetic(())
    choice = stored.chosen(method, outputs, labels, COSTS, accept_loss(0.02))
    assert choice.accuracy >= choice.accuracy_full - 0.02 - 1e-9 and choice.cost_fraction < 0.9


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: act(tau=-0.1), "`tau` must be at least 0, got -0.1"),
        (lambda: act(thresholds=[0.5, 1.0, 1.5]), "lie in 0..1"),
        (
            lambda: act().objective(
                {"logits": jnp.zeros((2, 1, C)), "halt_logit": jnp.zeros((2, 1))},
                jnp.array([0]),
                PROGRESS,
            ),
            "`outputs` must have the entry 'accumulated': act needs an averaged model (dx.transforms.averaged)",
        ),
    ],
)
def test_refusals(call, text):
    with pytest.raises(ValueError) as error:
        call()
    assert text in str(error.value)
