"""Confidence exits: objective by loops, candidates that run, and the whole of calibration on
synthetic outputs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stored

from dynexit.calibration.rules.accept_loss import accept_loss
from dynexit.calibration.temperature import fit_temperature
from dynexit.engine.replay import replay
from dynexit.methods.exits.confidence_exits import confidence_exits
from dynexit.objectives import weights
from dynexit.objectives.distillation import self_distillation
from dynexit.objectives.multi_exit import multi_exit_cross_entropy

E, M, C = 4, 300, 6
COSTS = np.array([1.0, 2.0, 3.0, 4.0])
PROGRESS = jnp.float32(0.25)


def synthetic():
    """Logits that grow right with depth and are far too bold at the first exit."""
    keys = jax.random.split(jax.random.key(0), 3)
    labels = jax.random.randint(keys[0], (M,), 0, C)
    pace = jax.random.uniform(keys[1], (M,), minval=0.5, maxval=2.5)
    clean = (jnp.arange(1.0, E + 1)[:, None] * pace[None])[..., None] * jax.nn.one_hot(labels, C)[
        None
    ]
    boldness = jnp.array([4.0, 1.0, 1.0, 1.0])[:, None, None]
    return boldness * (clean + 1.2 * jax.random.normal(keys[2], (E, M, C))), labels


LOGITS, LABELS = synthetic()


def test_objective_is_the_weighted_sum_and_reports_both_ends():
    w = weights.linear(E)
    loss, metrics = confidence_exits(weights=w, label_smoothing=0.1).objective(
        LOGITS, LABELS, PROGRESS
    )
    losses = np.asarray(multi_exit_cross_entropy(LOGITS, LABELS, 0.1))
    np.testing.assert_allclose(loss, np.asarray(w) @ losses, rtol=1e-5)
    right = np.asarray(LOGITS.argmax(-1)) == np.asarray(LABELS)
    np.testing.assert_allclose(metrics["accuracy_exit_first"], right[0].mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy_exit_last"], right[-1].mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss_exit_first"], losses[0].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss_exit_last"], losses[-1].mean(), rtol=1e-5)
    assert right[0].mean() < right[-1].mean()
    assert all(m.shape == () and m.dtype == jnp.float32 for m in metrics.values())


def test_default_weights_are_uniform_and_weights_may_follow_the_progress():
    plain = confidence_exits().objective(LOGITS, LABELS, PROGRESS)[0]
    np.testing.assert_allclose(
        plain, np.asarray(multi_exit_cross_entropy(LOGITS, LABELS)).mean(axis=0), rtol=1e-5
    )
    growing = confidence_exits(
        weights=lambda progress: weights.sdn([0.25, 0.5, 0.75, 1.0], progress)
    )
    wanted = np.asarray(weights.sdn([0.25, 0.5, 0.75, 1.0], 0.25)) @ np.asarray(
        multi_exit_cross_entropy(LOGITS, LABELS)
    )
    np.testing.assert_allclose(
        jax.jit(growing.objective)(LOGITS, LABELS, PROGRESS)[0], wanted, rtol=1e-5
    )


def test_distillation_is_added_and_reported():
    plain = confidence_exits().objective(LOGITS, LABELS, PROGRESS)[0]
    loss, metrics = confidence_exits(distill=0.5, distill_temperature=2.0).objective(
        LOGITS, LABELS, PROGRESS
    )
    taught = np.asarray(self_distillation(LOGITS, 2.0)).mean(axis=0)
    np.testing.assert_allclose(loss, plain + 0.5 * taught, rtol=1e-5)
    np.testing.assert_allclose(metrics["distillation"], taught.mean(), rtol=1e-5)


def test_candidates_are_tempered_and_hold_full_depth():
    method = confidence_exits(shared=7)
    points = stored.curve_of(method, LOGITS, LABELS, COSTS).points
    assert points["threshold"].shape == (39 + 7, E - 1) and points["temperature"].shape == (
        39 + 7,
        E,
    )
    np.testing.assert_allclose(points["temperature"][5], fit_temperature(LOGITS, LABELS), rtol=1e-5)
    assert (
        points["temperature"][0, 0] > 2 * points["temperature"][0, 1]
    )  # the first exit was four times too bold
    last = jax.tree.map(lambda a: a[-1], points)
    assert (replay(method.criterion(last), LOGITS).exit == E - 1).all()


@pytest.mark.parametrize("wrap", [lambda z: z, lambda z: {"logits": z}], ids=["bare", "dict"])
def test_calibration_end_to_end(wrap):
    method, outputs = confidence_exits(), wrap(LOGITS)
    choice = stored.chosen(method, outputs, LABELS, COSTS, accept_loss(0.01))
    assert choice.accuracy >= choice.accuracy_full - 0.01 - 1e-9
    assert choice.cost_fraction < 0.9
    # A loop over rows, with the point that was chosen.
    threshold, temperature = (
        np.asarray(choice.operating_point["threshold"]),
        np.asarray(choice.operating_point["temperature"]),
    )
    p = np.asarray(jax.nn.softmax(LOGITS / temperature[:, None, None]).max(-1))
    exit = [next((e for e in range(E - 1) if p[e, m] > threshold[e]), E - 1) for m in range(M)]
    halted = replay(method.criterion(choice.operating_point), outputs)
    assert halted.exit.tolist() == exit
    assert method.predict(halted.output).tolist() == [
        int(LOGITS[e, m].argmax()) for m, e in enumerate(exit)
    ]


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"distill": -1.0}, "`distill` must be at least 0, got -1.0"),
        ({"distill_temperature": 0.0}, "`distill_temperature` must be above 0, got 0.0"),
    ],
)
def test_refusals(arguments, text):
    with pytest.raises(ValueError) as error:
        confidence_exits(**arguments)
    assert text in str(error.value)


def test_rows_without_a_label_count_in_no_mean():
    labels = jnp.where(jnp.arange(M) % 2 == 0, -1, LABELS)
    some, kept = labels, np.arange(M) % 2 == 1
    _, metrics = confidence_exits().objective(LOGITS, some, PROGRESS)
    _, wanted = confidence_exits().objective(LOGITS[:, kept], LABELS[kept], PROGRESS)
    for name in wanted:
        np.testing.assert_allclose(metrics[name], wanted[name], rtol=1e-5, err_msg=name)
