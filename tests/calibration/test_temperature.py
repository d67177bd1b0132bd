"""Temperatures per exit: known scalings are found, and nothing gets worse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynexit.calibration.temperature import (
    fit_temperature,
    mean_nll,
    temperature_fit,
    usable,
)
from dynexit.core.labels import IGNORED

M, C = 4000, 5
TRUE = 1.5 * jax.random.normal(jax.random.key(0), (M, C))
LABELS = jax.random.categorical(
    jax.random.key(1), TRUE
)  # drawn from softmax(TRUE): T = 1 is right for TRUE


def nll(logits, labels, temperature):
    z = np.asarray(logits, np.float64) / temperature
    log_p = (
        z
        - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True))
        - z.max(1, keepdims=True)
    )
    return -log_p[np.arange(len(labels)), np.asarray(labels)].mean()


def test_finds_known_scalings_exit_by_exit():
    scales = [0.4, 1.0, 3.0]
    found = np.asarray(fit_temperature(jnp.stack([s * TRUE for s in scales]), LABELS))
    np.testing.assert_allclose(found, scales, rtol=0.06)
    grid = np.geomspace(0.5, 2.0, 401)
    best = grid[np.argmin([nll(TRUE, LABELS, t) for t in grid])]
    np.testing.assert_allclose(found[1], best, rtol=0.005)


def test_never_worse_than_without():
    random = 4 * jax.random.normal(
        jax.random.key(2), (3, 64, C)
    )  # of no use: the best T is at the upper bound
    right = jax.nn.one_hot(LABELS[:64], C)[None]  # always right: T wants to be 0
    logits = jnp.concatenate([random, right, 40 * right, -5 * right, 0 * right])
    found = fit_temperature(logits, LABELS[:64])
    assert found.shape == (7,) and (found >= 0.1).all() and (found <= 10).all()
    for z, t in zip(logits, found, strict=True):
        assert nll(z, LABELS[:64], float(t)) <= nll(z, LABELS[:64], 1.0) + 1e-6
    np.testing.assert_allclose(found[3], 0.1, rtol=1e-5)


def test_rows_with_nan_are_left_out_and_excluded_classes_allowed():
    spoilt = TRUE.at[:7, 2].set(jnp.nan)
    np.testing.assert_allclose(
        fit_temperature(spoilt[None], LABELS),
        fit_temperature(TRUE[None, 7:], LABELS[7:]),
        rtol=1e-4,
    )
    fewer = jnp.where(jnp.arange(C) == 4, -jnp.inf, TRUE)
    rows = LABELS != 4
    found = fit_temperature(2 * fewer[None, rows], LABELS[rows])
    np.testing.assert_allclose(found, 2.0, rtol=0.1)


def test_rows_without_a_label_are_left_out():
    some = jnp.where(jnp.arange(len(LABELS)) < 100, IGNORED, LABELS)
    np.testing.assert_allclose(
        fit_temperature(3 * TRUE[None], some),
        fit_temperature(3 * TRUE[None, 100:], LABELS[100:]),
        rtol=1e-4,
    )


@pytest.mark.parametrize("broken", ["nan", "inf", "float16", "excluded"])
def test_a_row_whose_logits_are_not_finite_is_left_out_and_counted(broken):
    logits = 2.5 * TRUE[None]
    spoilt = {
        "nan": logits.at[0, 0, 0].set(jnp.nan),
        "inf": logits.at[0, 0, 0].set(jnp.inf),
        "float16": logits.at[0, 0, 0].set(7e4).astype(jnp.float16),
        "excluded": logits.at[0, 0, LABELS[0]].set(-jnp.inf),
    }[broken]
    np.testing.assert_allclose(
        fit_temperature(spoilt, LABELS),
        fit_temperature(logits[:, 1:], LABELS[1:]),
        rtol=2e-3 if broken == "float16" else 1e-5,
    )
    assert int((~usable(spoilt[0], LABELS)).sum()) == 1
    _, remarks = passes(temperature_fit(), spoilt, LABELS, 100)
    assert remarks == (
        "temperature of exit 0: 1 labelled places left out, whose logits are not finite",
    )
    assert bool(jnp.isfinite(mean_nll(spoilt[0], LABELS, jnp.float32(2.0))))


def passes(fit, logits, labels, batch):
    """Temperatures and remarks by passes over batches, as evaluation makes them."""
    state, finished, done = fit.begin(len(logits)), False, 0
    measure = jax.jit(fit.measure)
    while not finished:
        sums = {}
        for start in range(0, len(labels), batch):
            rows = slice(start, start + batch)
            for e in range(len(logits)):
                terms = measure(state, jnp.int32(e), logits[e, rows], labels[rows])
                for name, value in terms.items():
                    sums.setdefault(name, np.zeros(len(logits)))[e] += np.float64(value).sum()
        state, finished = fit.advance(state, sums)
        done += 1
    assert done <= 12, "each pass runs the network over the whole split"
    return fit.finish(state)


def test_passes_over_batches_find_what_stored_logits_give():
    random = 4 * jax.random.normal(jax.random.key(2), (M, C))
    right = 40 * jax.nn.one_hot(LABELS, C)
    logits = jnp.stack([0.4 * TRUE, 3 * TRUE, random, right, 0 * right])
    fitted, remarks = passes(temperature_fit(), logits, LABELS, 700)
    np.testing.assert_allclose(fitted["temperature"], fit_temperature(logits, LABELS), rtol=1e-5)
    assert remarks == ()


def test_places_are_fitted_like_rows():
    found = fit_temperature(3 * TRUE.reshape(1, 1000, 4, C), LABELS.reshape(1000, 4))
    np.testing.assert_allclose(found, fit_temperature(3 * TRUE[None], LABELS), rtol=1e-5)


def test_mean_nll_is_the_loop():
    np.testing.assert_allclose(
        mean_nll(TRUE, LABELS, jnp.float32(1.7)), nll(TRUE, LABELS, 1.7), rtol=1e-5
    )


@pytest.mark.parametrize(
    "call, kind, text",
    [
        (lambda: fit_temperature(TRUE, LABELS), ValueError, "`logits` must have shape [E, M, C]"),
        (
            lambda: fit_temperature(TRUE[None], LABELS[:5]),
            ValueError,
            "`labels` must have shape [M, ...] = [4000], got (5,)",
        ),
        (
            lambda: fit_temperature(TRUE[None], TRUE[:, 0]),
            TypeError,
            "`labels` must be integers, got float32",
        ),
        (
            lambda: fit_temperature(TRUE[None], LABELS + C),
            ValueError,
            "labels of `labels` must lie in 0..",
        ),
        (
            lambda: fit_temperature(TRUE[None], LABELS, 2.0, 4.0),
            ValueError,
            "0 < lowest <= 1 <= highest, got 2.0 and 4.0",
        ),
    ],
)
def test_refusals(call, kind, text):
    with pytest.raises(kind) as error:
        call()
    assert text in str(error.value)
