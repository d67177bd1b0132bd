"""The progressive loss against a Python loop, its law of steps, and the exit where the answer
stands still.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.engine.steps import rematerialised
from dynexit.methods.recurrent.deep_thinking import deep_thinking, progress_drawn

MODEL = dx.models.DeepThinking(width=6, steps=9, blocks=1).build((8, 1), 2)
PARAMS = jax.jit(MODEL.init)(jax.random.key(0))
X = jax.random.normal(jax.random.key(1), (4, 7, 1))
LABELS = jnp.where(
    jax.random.bernoulli(jax.random.key(3), 0.2, (4, 7)),
    -1,
    jax.random.randint(jax.random.key(2), (4, 7), 0, 2),
)


def after(params, free, steps):
    """Loss after free iterations without gradients and some with them, place by place that counts."""
    still = jax.lax.stop_gradient(params)
    state, fixed = MODEL.embed(params, X), MODEL.embed(still, X)
    step, frozen, output = MODEL.steps(params), MODEL.steps(still), None
    for i in range(free):
        fixed = frozen.apply(frozen.select(0), i, fixed)[0]
    state = {"input": state["input"], "h": fixed["h"] if free else state["h"]}
    for i in range(steps):
        state, output = step.apply(step.select(0), i, state)
    log_p = jax.nn.log_softmax(output)
    labels = np.asarray(LABELS)
    row = lambda b: (
        sum(-log_p[b, t, labels[b, t]] for t in range(7) if labels[b, t] >= 0)
        / float((labels[b] >= 0).sum())
    )
    return sum(row(b) for b in range(4)) / 4


@pytest.mark.parametrize("alpha,key", [(1.0, 0), (0.3, 1), (0.0, 2)])
def test_loss_and_gradient_are_the_loop(alpha, key):
    method, key = deep_thinking(6, alpha), jax.random.key(key)
    n, k = map(int, progress_drawn(key, 6))
    wanted = jax.value_and_grad(lambda p: alpha * after(p, n, k) + (1 - alpha) * after(p, 0, 6))(
        PARAMS
    )
    found = jax.value_and_grad(
        lambda p: method.loss(MODEL, p, X, LABELS, key, jnp.float32(0.0))[0].mean()
    )(PARAMS)
    close = lambda a, b: np.testing.assert_allclose(
        a, b, rtol=1e-3, atol=4e-5 * np.abs(b).max()
    )  # rounding follows the largest
    jax.tree.map(close, found, wanted)
    metrics = method.loss(MODEL, PARAMS, X, LABELS, key, jnp.float32(0.0))[1]
    assert int(metrics["iterations"]) == n + k and ("loss_full" in metrics) == (alpha < 1)


def test_exits_several_iterations_apart_are_the_same_network_read_less_often():
    seldom = dx.models.DeepThinking(width=6, steps=9, blocks=1, every=3).build((8, 1), 2)
    outputs, less = (dx.run_all(m.steps(PARAMS), m.embed(PARAMS, X), 9) for m in (MODEL, seldom))
    np.testing.assert_allclose(less, outputs[2::3], atol=1e-5)
    halted = dx.run_until(
        seldom.steps(PARAMS),
        seldom.embed(PARAMS, X),
        9,
        dx.criteria.at_depth(jnp.array([1, 3, 2, 1])),
    )
    assert halted.exit_depth.tolist() == [3, 9, 6, 3]
    key = jax.random.key(1)
    n, k = map(int, progress_drawn(key, 5))
    losses, metrics = deep_thinking(5).loss(seldom, PARAMS, X, LABELS, key, jnp.float32(0.0))
    np.testing.assert_allclose(losses.mean(), after(PARAMS, n, k), rtol=1e-4)
    assert int(metrics["iterations"]) == n + k
    with pytest.raises(ValueError, match=r"`step` must be from `tied_step` .* of 2 blocks"):
        dx.engine.every_iteration(
            dx.stacked_step(lambda p, h: h, lambda p, h: h, jnp.ones(4), blocks=2)
        )
    with pytest.raises(ValueError, match="steps must be a multiple of every"):
        dx.models.DeepThinking(width=6, steps=9, every=2).build((8, 1), 2)


def test_the_law_of_the_steps():
    n, k = jax.vmap(lambda key: progress_drawn(key, 5))(jax.random.split(jax.random.key(0), 20_000))
    assert set(n.tolist()) == set(range(5)) and k.min() == 1 and (n + k).max() == 5
    np.testing.assert_allclose(np.bincount(n) / 20_000, 0.2, atol=0.02)
    for m in range(5):  # k is even on 1..5-n
        np.testing.assert_allclose(
            np.bincount(k[n == m], minlength=6 - m)[1:] / (n == m).sum(), 1 / (5 - m), atol=0.04
        )


def test_a_row_leaves_once_no_place_moves_for_two_iterations():
    logits = np.zeros((7, 2, 3, 2), np.float32)
    logits[:, 0, 1, 0] = [5, 0, 5, 5, 5, 5, 5]  # moves at 1 and 2: still at 3 and 4
    logits[:, 1, 2, 0] = [0, 1, 2, 3, 4, 5, 6]  # never still
    rule = deep_thinking(3).criterion({"threshold": jnp.float32(1e-4)})
    assert dx.replay(rule, jnp.asarray(logits)).exit.tolist() == [4, 6]
    points = deep_thinking(3).candidates.points(None, {}, None)["threshold"]
    still = dx.replay(deep_thinking(3).criterion({"threshold": points[0]}), jnp.zeros((7, 1, 3, 2)))
    assert points[0] == 0 and still.exit.tolist() == [6], "0 is full depth"


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: deep_thinking(3, alpha=1.5), "`alpha` must lie in 0..1, got 1.5"),
        (lambda: deep_thinking(3, thresholds=(-1e-3,)), "`thresholds` must have shape"),
        (lambda: deep_thinking(0), "`most` must be at least 1"),
        (
            lambda: deep_thinking(10).loss(
                MODEL, PARAMS, X, LABELS, jax.random.key(0), jnp.float32(0.0)
            ),
            "has 9 iterations, fewer than the 10",
        ),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_blocks_computed_anew_in_the_backward_pass_change_nothing_where_exits_lie_apart():
    model = dx.models.DeepThinking(width=6, steps=9, blocks=1, every=3).build((8, 1), 2)
    again = model._replace(steps=lambda params: rematerialised(model.steps(params)))
    run = lambda model, p: (
        deep_thinking(6).loss(model, p, X, LABELS, jax.random.key(1), jnp.float32(0.0))[0].mean()
    )
    slopes = [jax.grad(lambda p, model=model: run(model, p))(PARAMS) for model in (model, again)]
    chex.assert_trees_all_close(*slopes, rtol=1e-5, atol=1e-6)
