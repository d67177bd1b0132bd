"""Cross-entropy and distillation of every exit against Python loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.objectives.distillation import distilled_cross_entropy, self_distillation
from dynexit.objectives.multi_exit import deep_supervision, multi_exit_cross_entropy, weighted
from dynexit.objectives.stablemax import stablemax_cross_entropy

E, B, C = 3, 4, 5
LOGITS = 3 * jax.random.normal(jax.random.key(0), (E, B, C))
LABELS = jnp.array([0, 4, 2, 2])


def softmax(z):
    e = [math.exp(x - max(z)) for x in z]
    return [x / sum(e) for x in e]


def oracle_cross_entropy(logits, labels, smoothing):
    out = np.zeros((len(logits), len(labels)))
    for e, exit in enumerate(np.asarray(logits, np.float64)):
        for b, z in enumerate(exit):
            p = softmax(z)
            for c in range(len(z)):
                target = (1 - smoothing) * (c == int(labels[b])) + smoothing / len(z)
                out[e, b] -= target * math.log(p[c])
    return out


def oracle_distillation(logits, temperature):
    out = np.zeros(logits.shape[:2])
    logits = np.asarray(logits, np.float64) / temperature
    for e in range(logits.shape[0]):
        for b in range(logits.shape[1]):
            teacher, student = softmax(logits[-1, b]), softmax(logits[e, b])
            out[e, b] = temperature**2 * sum(
                t * math.log(t / s) for t, s in zip(teacher, student, strict=True)
            )
    return out


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_matches_the_loop(smoothing):
    losses = multi_exit_cross_entropy(LOGITS, LABELS, smoothing)
    np.testing.assert_allclose(losses, oracle_cross_entropy(LOGITS, LABELS, smoothing), rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_matches_the_loop(temperature):
    distance = self_distillation(LOGITS, temperature)
    np.testing.assert_allclose(
        distance, oracle_distillation(LOGITS, temperature), rtol=1e-4, atol=1e-6
    )
    assert (distance[-1] == 0).all() and (distance[:-1] > 0).all()


def test_the_teacher_has_no_gradient():
    gradient = jax.grad(lambda z: self_distillation(z).sum())(LOGITS)
    np.testing.assert_allclose(gradient[-1], 0.0, atol=1e-6)
    wanted = jax.nn.softmax(LOGITS[:-1]) - jax.nn.softmax(LOGITS[-1])[None]
    np.testing.assert_allclose(gradient[:-1], wanted, atol=1e-6)


def test_a_class_excluded_by_the_teacher_contributes_nothing():
    logits = jnp.array([[[1.0, 0.0, 2.0]], [[1.0, 0.0, -jnp.inf]]])
    p, s = softmax([1.0, 0.0]), softmax([1.0, 0.0, 2.0])
    wanted = sum(p[c] * math.log(p[c] / s[c]) for c in range(2))
    np.testing.assert_allclose(self_distillation(logits)[0, 0], wanted, rtol=1e-5)


def test_the_last_exit_is_trained_on_labels_only():
    mixed = distilled_cross_entropy(LOGITS, LABELS, alpha=0.3, temperature=2.0, label_smoothing=0.1)
    labels, teacher = oracle_cross_entropy(LOGITS, LABELS, 0.1), oracle_distillation(LOGITS, 2.0)
    np.testing.assert_allclose(mixed[:-1], 0.7 * labels[:-1] + 0.3 * teacher[:-1], rtol=1e-4)
    np.testing.assert_allclose(mixed[-1], labels[-1], rtol=1e-5)
    # FastBERT: with alpha = 1 the losses of the early exits do not depend on the labels.
    other = distilled_cross_entropy(LOGITS, (LABELS + 1) % C, alpha=1.0)
    np.testing.assert_array_equal(
        other[:-1], distilled_cross_entropy(LOGITS, LABELS, alpha=1.0)[:-1]
    )


def test_weighted_and_deep_supervision_match_the_loop():
    losses, w = multi_exit_cross_entropy(LOGITS, LABELS), [0.2, 0.0, 1.5]
    wanted = [sum(w[e] * float(losses[e, b]) for e in range(E)) for b in range(B)]
    np.testing.assert_allclose(weighted(losses, w), wanted, rtol=1e-6)
    np.testing.assert_allclose(deep_supervision(LOGITS, LABELS, w), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    "call, error, argument",
    [
        (lambda: multi_exit_cross_entropy(LOGITS[0], LABELS), ValueError, "logits"),
        (lambda: multi_exit_cross_entropy(LOGITS, LABELS[:3]), ValueError, "labels"),
        (lambda: multi_exit_cross_entropy(LOGITS, LOGITS[0, :, 0]), TypeError, "labels"),
        (lambda: multi_exit_cross_entropy(LABELS, LABELS), TypeError, "logits"),
        (lambda: multi_exit_cross_entropy(LOGITS, LABELS, 1.5), ValueError, "label_smoothing"),
        (lambda: weighted(LOGITS[..., 0], jnp.ones(2)), ValueError, "weights"),
        (lambda: self_distillation(LOGITS, 0.0), ValueError, "temperature"),
        (lambda: self_distillation(LOGITS[0]), ValueError, "logits"),
        (lambda: distilled_cross_entropy(LOGITS, LABELS, -0.1), ValueError, "alpha"),
    ],
)
def test_invalid_arguments(call, error, argument):
    with pytest.raises(error, match=f"^`{argument}`"):
        call()


def test_one_logit_is_refused_and_labels_may_be_a_list():
    with pytest.raises(ValueError, match="`logits` must have at least 2 classes"):
        multi_exit_cross_entropy(jnp.zeros((2, 3, 1)), jnp.zeros(3, jnp.int32))
    logits = jax.random.normal(jax.random.key(0), (2, 3, 4))
    np.testing.assert_array_equal(
        multi_exit_cross_entropy(logits, [0, 1, 3]),
        multi_exit_cross_entropy(logits, jnp.array([0, 1, 3])),
    )


@pytest.mark.parametrize("loss", [multi_exit_cross_entropy, stablemax_cross_entropy])
def test_labels_of_every_kind(loss):
    logits = jax.random.normal(jax.random.key(0), (2, 3, 256))
    plain = loss(logits, jnp.array([255, 7, 0]))
    for kind in (np.uint8, np.int16, np.int64):
        np.testing.assert_array_equal(loss(logits, np.array([255, 7, 0], kind)), plain)
    np.testing.assert_array_equal(loss(logits, jnp.array([255, 7, 0], jnp.uint8)), plain)
    np.testing.assert_array_equal(loss(logits, [255, 7, 0]), plain)
    for wrong in (-100, -2, 256, 10_000):
        found = jax.jit(loss)(logits, jnp.array([wrong, 7, -1]))
        assert np.isnan(found[:, 0]).all()
        np.testing.assert_allclose(found[:, 1], plain[:, 1], rtol=1e-6)
        np.testing.assert_array_equal(found[:, 2], 0)
        ignored = loss(logits, jnp.array([wrong, 7, -1]), ignore_label=wrong)
        np.testing.assert_array_equal(ignored[:, 0], 0)
    labels = jnp.array([-100, 3, -1])
    slope = jax.grad(lambda z: loss(z, labels, ignore_label=-100).sum())(logits)
    assert (slope[:, [0, 2]] == 0).all() and np.isfinite(slope).all() and (slope[:, 1] != 0).any()
