"""Sorted fine-tuning: the loss is the mean over truncated models, and so is its gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.methods.language.sorted_exits import sorted_exits
from dynexit.objectives.multi_exit import multi_exit_cross_entropy

N, V, B, L = 2, 12, 2, 5
SETTINGS = dx.models.CausalLM(width=8, depth=N, heads=2)
MODEL = SETTINGS.build(dx.Tokens(V), V)
PARAMS = MODEL.init(jax.random.key(0))
TOKENS = jax.random.randint(jax.random.key(1), (B, L), 0, V)
KEY, HALF = jax.random.key(2), jnp.float32(0.5)


def of_method(params, depths):
    return sorted_exits(depths).loss(MODEL, params, TOKENS, TOKENS, KEY, HALF)[0].mean()


def of_truncated(params, n):
    """The loss of the first n blocks as a model of their own."""
    whole = {**params, "blocks": jax.tree.map(lambda a: a[:n], params["blocks"])}
    model = dataclasses.replace(SETTINGS, depth=n).build(dx.Tokens(V), V)
    outputs = dx.run_all(model.steps(whole), model.embed(whole, TOKENS), n)
    return multi_exit_cross_entropy(outputs["logits"][-1:], TOKENS)[0].mean()


@pytest.mark.slow
def test_loss_and_gradients_are_means_over_the_depths():
    mean = lambda p: (of_truncated(p, 1) + of_truncated(p, N)) / 2
    of = jax.value_and_grad
    (found, gradients), (wanted, expected) = jax.jit(
        lambda p: (of(of_method)(p, (1,)), of(mean)(p))
    )(PARAMS)
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, gradients, expected)


def test_metrics_and_candidates_are_those_of_the_depths():
    method = sorted_exits((1,))
    loss, metrics = jax.jit(lambda p: method.loss(MODEL, p, TOKENS, TOKENS, KEY, HALF))(PARAMS)
    both = (metrics["loss_exit_first"] + metrics["loss_exit_last"]) / 2
    assert float(loss.mean()) == pytest.approx(float(both), rel=1e-6)
    points = lambda depths: sorted_exits(depths).candidates.points(None, {}, np.ones(3))["depth"]
    assert points((2,)).tolist() == [2, 3] and points(()).tolist() == [1, 2, 3]


@pytest.mark.refuses
def test_wrong_depths_are_refused():
    for wrong in ((2, 1), (0, 2), (1, 1)):
        with pytest.raises(ValueError, match="`depths` must be rising"):
            sorted_exits(wrong)
    with pytest.raises(ValueError, match="`depths` must lie below 2"):
        of_method(PARAMS, (2,))
