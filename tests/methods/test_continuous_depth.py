"""Continuous depth: the loss at arrival and on the way, and rows that leave when their own steps
have taken them there.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.methods.recurrent.neural_ode import neural_ode

WAY = np.array(
    [[0.1, 0.4, 0.2], [0.5, 1.0, 0.2], [1.0, 1.0, 0.6], [1.0, 1.0, 0.9]], np.float32
)  # [E, B]; the last never arrives
LOGITS = np.asarray(jax.random.normal(jax.random.key(0), (4, 3, 5)))
OUTPUTS, LABELS = {"logits": jnp.asarray(LOGITS), "gate": jnp.asarray(WAY)}, jnp.array([0, 3, 1])


@pytest.mark.parametrize("early", [0.0, 0.3, 1.0])
def test_the_loss_is_the_last_answers_and_a_share_of_all(early):
    log_p = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
    each = -log_p[:, np.arange(3), np.asarray(LABELS)]
    losses, metrics = neural_ode(early).objective(OUTPUTS, LABELS, jnp.float32(0.0))
    np.testing.assert_allclose(losses, (1 - early) * each[-1] + early * each.mean(0), rtol=1e-5)
    assert float(metrics["solver_steps"]) == pytest.approx((3 + 2 + 4) / 3)
    assert float(metrics["arrived"]) == pytest.approx(2 / 3)


def test_rows_leave_at_the_time_asked_for():
    method = neural_ode()
    levels = method.candidates.points(None, {}, None)["threshold"]
    assert levels[-1] == 1.0
    exits = lambda t: dx.replay(
        method.criterion({"threshold": jnp.float32(t)}), OUTPUTS
    ).exit.tolist()
    assert exits(0.999) == [2, 1, 3] and exits(0.3) == [1, 0, 2] and exits(levels[-1]) == [3, 3, 3]


def test_arrival_is_as_good_as_all_steps():
    """A row that has arrived does not change: its answer there is that of the last exit."""
    pytest.importorskip("diffrax")
    model = dx.models.NeuralOde(width=6, hidden=8, steps=10).build((4,), 3)
    params = jax.tree.map(lambda a: 2 * a, model.init(jax.random.key(0)))
    step, state = (
        model.steps(params),
        model.embed(params, jax.random.normal(jax.random.key(1), (5, 4))),
    )
    halted = dx.run_until(
        step, state, model.depth, neural_ode().criterion({"threshold": jnp.float32(0.999)})
    )
    every = dx.run_all(step, state, model.depth)
    assert (halted.exit_depth < 10).all() and (every["gate"][-1] > 0.999).all()
    arrived = np.asarray(every["gate"] > 0.999).argmax(axis=0)
    there = np.asarray(every["logits"])[arrived, np.arange(5)]
    np.testing.assert_array_equal(there, every["logits"][-1])
    # another program rounds its error estimates otherwise, so steps differ within the tolerance
    np.testing.assert_allclose(halted.output["logits"], every["logits"][-1], rtol=1e-3, atol=1e-3)


def test_refusals():
    with pytest.raises(ValueError, match=r"`early` must lie in 0\.\.1, got 2"):
        neural_ode(2)
    with pytest.raises(ValueError, match=r"`thresholds` must have shape .* and lie in 0..1"):
        neural_ode(thresholds=(1.5,))
    with pytest.raises(ValueError, match="`outputs` must have the entry 'gate'"):
        neural_ode().objective(LOGITS, LABELS, jnp.float32(0.0))
