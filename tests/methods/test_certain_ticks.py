"""The continuous thought machine's loss by hand, its certainty, its exit against a loop over ticks,
and calibration.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stored

import dynexit as dx
from dynexit.calibration.rules.accept_loss import accept_loss
from dynexit.engine.replay import replay
from dynexit.methods.recurrent.ctm import THRESHOLDS, ctm
from dynexit.transforms.best_so_far import certainty

PROGRESS = jnp.float32(0.0)


def two_class(p):
    """Logits whose softmax has p as its second probability, in a new last axis."""
    p = np.asarray(p, np.float64)
    return jnp.asarray(np.stack([np.zeros_like(p), np.log(p / (1 - p))], -1), jnp.float32)


def entropy(p):
    return -(p * np.log(p) + (1 - p) * np.log(1 - p))


# Probability of class 1 at three ticks for four rows. The loss is least at ticks 3, 1, 2, 2,
# certainty greatest at 1, 3, 2, 3.
PROBABILITY = np.array(
    [[0.05, 0.60, 0.40, 0.30], [0.40, 0.40, 0.10, 0.60], [0.70, 0.20, 0.70, 0.10]]
)
LABELS = jnp.array([1, 1, 0, 1])
LEAST, CERTAIN = np.array([2, 0, 1, 1]), np.array([0, 2, 1, 2])


def test_each_row_has_two_ticks_of_its_own():
    loss, metrics = jax.jit(ctm().objective)(two_class(PROBABILITY), LABELS, PROGRESS)
    at_least, at_certain = -np.log([0.70, 0.60, 0.90, 0.60]), -np.log([0.05, 0.20, 0.90, 0.10])
    np.testing.assert_allclose(loss, (at_least + at_certain) / 2, rtol=1e-5)
    wanted = {
        "loss_least": at_least.mean(),
        "loss_certain": at_certain.mean(),
        "tick_least": (3 + 1 + 2 + 2) / 4,
        "tick_certain": (1 + 3 + 2 + 3) / 4,
        "accuracy_certain": 1 / 4,  # the third row alone
        "accuracy_exit_last": 1 / 4,  # the first row alone
    }
    assert metrics.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
        assert metrics[name].shape == () and metrics[name].dtype == jnp.float32


def test_the_gradient_is_that_of_these_two_ticks_alone():
    logits = two_class(PROBABILITY)
    slope = np.asarray(jax.grad(lambda z: ctm().objective(z, LABELS, PROGRESS)[0].sum())(logits))
    wanted, target = np.zeros(slope.shape), np.eye(2)[np.asarray(LABELS)]
    p = np.stack([1 - PROBABILITY, PROBABILITY], -1)
    for b in range(4):
        for tick in (LEAST[b], CERTAIN[b]):
            wanted[tick, b] += (p[tick, b] - target[b]) / 2
    np.testing.assert_allclose(slope, wanted, atol=1e-6)


def test_places_are_averaged_before_ticks_are_picked():
    """Rows with two places; the second row's last place does not count in the loss, but does in the
    certainty.
    """
    p = np.array([[[0.9, 0.55], [0.3, 0.01]], [[0.7, 0.8], [0.8, 0.40]]])  # [ticks, rows, places]
    labels = jnp.array([[1, 0], [1, -1]])
    loss, metrics = ctm().objective({"logits": two_class(p)}, labels, PROGRESS)
    ce = np.array(
        [[-np.log([0.9, 0.45]).mean(), -np.log(0.3)], [-np.log([0.7, 0.2]).mean(), -np.log(0.8)]]
    )
    certain = 1 - entropy(p).mean(-1) / np.log(2)
    assert ce.argmin(0).tolist() == [0, 1] and certain.argmax(0).tolist() == [0, 0]
    np.testing.assert_allclose(jax.vmap(certainty)(two_class(p)), certain, rtol=1e-5)
    np.testing.assert_allclose(loss, [ce[0, 0], (ce[1, 1] + ce[0, 1]) / 2], rtol=1e-5)
    assert float(metrics["accuracy_certain"]) == 0 and float(metrics["accuracy_exit_last"]) == 0.5


@pytest.mark.parametrize("shape", [(3, 4), (2, 5, 7)])
def test_a_uniform_answer_is_not_certain_and_a_sure_one_wholly(shape):
    np.testing.assert_allclose(certainty(jnp.full(shape, 3.0)), np.zeros(shape[0]), atol=1e-6)
    np.testing.assert_array_equal(
        certainty(200.0 * jnp.eye(shape[-1])[jnp.zeros(shape[:-1], jnp.int32)]), np.ones(shape[0])
    )


def test_rows_leave_at_the_first_tick_that_is_certain_enough():
    logits = two_class(PROBABILITY)
    certain = 1 - entropy(PROBABILITY) / np.log(2)
    for threshold in (0.0, 0.02, 0.2, 0.5, 1.0):
        halted = replay(ctm().criterion({"threshold": jnp.float32(threshold)}), logits)
        wanted = [next((t for t in range(3) if certain[t, b] > threshold), 2) for b in range(4)]
        assert halted.exit.tolist() == wanted
    assert [0, 2, 1, 2] == [
        next((t for t in range(3) if certain[t, b] > 0.2), 2) for b in range(4)
    ], "rows leave apart"


def test_full_depth_is_never_passed():
    sure = jnp.full((3, 2, 2), 0.0).at[..., 1].set(500.0)
    halted = replay(ctm().criterion({"threshold": jnp.float32(1.0)}), sure)
    assert halted.exit.tolist() == [2, 2]
    assert replay(
        ctm().criterion({"threshold": jnp.float32(THRESHOLDS[-2])}), sure
    ).exit.tolist() == [0, 0]


def test_a_network_that_leaves_is_the_one_that_was_run_whole():
    model = dx.models.Ctm(
        width=12, ticks=5, answers=4, memory=3, features=8, action=6, out=6
    ).build((4, 1), 2)
    params = jax.tree.map(lambda a: 3 * a, model.init(jax.random.key(0)))
    step, state = (
        model.steps(params),
        model.embed(params, jax.random.normal(jax.random.key(1), (7, 4, 1))),
    )
    outputs = dx.run_all(step, state, 5)
    middle = jnp.median(jax.vmap(certainty)(outputs))
    criterion = ctm().criterion({"threshold": middle})
    wanted, halted = (
        replay(criterion, outputs),
        dx.run_until(step, state, 5, criterion, "compacted", tile=2),
    )
    assert len(set(wanted.exit.tolist())) > 1
    np.testing.assert_array_equal(halted.exit, wanted.exit)
    np.testing.assert_allclose(halted.output, wanted.output, rtol=1e-3, atol=1e-5)


def test_calibration_end_to_end():
    """Rows that are certain once they are right leave then, at no loss."""
    rows, ticks, places = 40, 6, 3
    labels = jax.random.randint(jax.random.key(0), (rows, places), 0, 2)
    needed = np.arange(rows) % ticks
    ready = jnp.asarray(np.arange(ticks)[:, None] >= needed[None])[..., None, None]
    logits = jnp.where(
        ready, 9.0 * jax.nn.one_hot(labels, 2)[None], -jax.nn.one_hot(labels, 2)[None]
    )
    method, costs = ctm(), np.arange(1.0, ticks + 1)
    choice = stored.chosen(method, logits, labels, costs, accept_loss(0.0))
    assert choice.accuracy == choice.accuracy_full == 1.0
    np.testing.assert_allclose(choice.mean_depth, np.mean(needed + 1))


def test_refusals():
    with pytest.raises(ValueError, match=r"`thresholds` must have shape \[K\] and lie in 0..1"):
        ctm([1.0, 1.5])
    with pytest.raises(ValueError, match="`logits` must have at least 2 classes"):
        ctm().objective(jnp.zeros((2, 3, 1)), jnp.zeros(3, jnp.int32), PROGRESS)


def test_of_a_model_that_keeps_its_best_answer_the_ticks_themselves_are_trained():
    logits = two_class(PROBABILITY)
    kept = jnp.stack([logits[0], logits[0], logits[1]])
    for wrapped in ({"logits": kept, "current": logits}, {"logits": logits}):
        loss, metrics = ctm().objective(wrapped, LABELS, PROGRESS)
        plain, wanted = ctm().objective(logits, LABELS, PROGRESS)
        np.testing.assert_array_equal(loss, plain)
        assert {k: float(v) for k, v in metrics.items()} == {k: float(v) for k, v in wanted.items()}
