"""Segments: the loss and its metrics against a loop over rows, golden halting, candidates,
calibration.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stored

import dynexit as dx
from dynexit.calibration.rules.accept_loss import accept_loss
from dynexit.engine.replay import replay
from dynexit.methods.recurrent.segments import (
    THRESHOLDS,
    detached,
    least_segments,
    live_segments,
    segments,
)

S, B, L, C, D = 5, 24, 3, 4, 6
PROGRESS = jnp.float32(0.0)
KEY = jax.random.key(7)


def toy(depth=S):
    """A tied model whose halting logit and answers differ from row to row; its state is {"input",
    "y"}.
    """

    def block(p, state):
        return {"input": state["input"], "y": jnp.tanh(state["y"] @ p["w"] + state["input"])}

    def head(p, state):
        logits = 2 * state["y"] @ p["out"]
        return {
            "logits": logits,
            "halt_logit": 3 * state["y"].mean((1, 2)) + p["bias"],
            "change": jnp.abs(state["y"]).max((1, 2)),
        }

    def init(key):
        keys = jax.random.split(key)
        return {
            "w": jax.random.normal(keys[0], (D, D)),
            "out": jax.random.normal(keys[1], (D, C)),
            "bias": jnp.float32(-0.2),
        }

    embed = lambda p, x: {"input": x, "y": jnp.zeros_like(x)}
    return dx.Model(
        init,
        embed,
        lambda p: dx.tied_step(block, head, p),
        depth,
        tuple(f"s{i}" for i in range(depth)),
    )


MODEL = toy()
PARAMS = MODEL.init(jax.random.key(0))
INPUTS = jax.random.normal(jax.random.key(1), (B, L, D))
OUTPUTS = dx.run_all(MODEL.steps(PARAMS), MODEL.embed(PARAMS, INPUTS), S)
# Every third row is answered rightly at segment 3, so that some answers are exactly right and some
# are not.
LABELS = jnp.where(
    (jnp.arange(B) % 3 == 0)[:, None],
    OUTPUTS["logits"][2].argmax(-1),
    jax.random.randint(jax.random.key(2), (B, L), 0, C),
)
LABELS = LABELS.at[5, 0].set(-1)


def s_of(z, loss):
    z = np.asarray(z, np.float64)
    return np.exp(z) if loss == "softmax" else np.where(z >= 0, z + 1, 1 / (1 - np.minimum(z, 0)))


def by_row(outputs, labels, least, weight, loss):
    """A loop over rows and segments: losses, and per row what the metrics count."""
    rows = []
    for b in range(B):
        terms = {"answer": [], "halting": [], "right": [], "agrees": []}
        for i in range(S):
            logits, q = np.asarray(outputs["logits"][i, b]), float(outputs["halt_logit"][i, b])
            places = [p for p in range(L) if labels[b, p] >= 0]
            terms["answer"].append(
                np.mean(
                    [
                        -np.log(s_of(logits[p], loss)[labels[b, p]] / s_of(logits[p], loss).sum())
                        for p in places
                    ]
                )
            )
            right = all(logits[p].argmax() == labels[b, p] for p in places)
            chance = 1 / (1 + np.exp(-q))
            terms["halting"].append(-np.log(chance if right else 1 - chance))
            terms["right"].append(right)
            terms["agrees"].append((q > 0) == right)
            if q > 0 and i + 1 >= least[b]:
                break
        rows.append(terms)
    taken = np.array([len(r["answer"]) for r in rows])
    losses = np.array([sum(r["answer"]) + weight * sum(r["halting"]) for r in rows]) / taken.mean()
    flat = lambda name: np.concatenate([r[name] for r in rows])
    metrics = {
        "loss_answer": flat("answer").mean(),
        "loss_halting": flat("halting").mean(),
        "live_segments": taken.mean(),
        "halted": (taken < S).mean(),
        "accuracy_halted": np.mean([r["right"][-1] for r in rows]),
        "halting_accuracy": flat("agrees").mean(),
    }
    return losses, metrics


@pytest.mark.parametrize("loss", ["softmax", "stablemax"])
@pytest.mark.parametrize("explore", [0.0, 0.6])
def test_loss_and_metrics_are_the_loop(loss, explore):
    method = segments(S, explore=explore, halting_weight=0.7, loss=loss)
    losses, metrics = jax.jit(lambda p, key: method.loss(MODEL, p, INPUTS, LABELS, key, PROGRESS))(
        PARAMS, KEY
    )
    least = np.asarray(least_segments(KEY, B, S, explore))
    wanted, oracle = by_row(OUTPUTS, np.asarray(LABELS), least, 0.7, loss)
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    right = (np.asarray(OUTPUTS["logits"]).argmax(-1) == np.asarray(LABELS)) | (
        np.asarray(LABELS) < 0
    )
    oracle |= {"accuracy_first": right[0].all(-1).mean(), "accuracy_last": right[-1].all(-1).mean()}
    assert (
        oracle.keys() == metrics.keys()
        and 1 < oracle["live_segments"] < S
        and 0 < oracle["halted"] < 1
    )
    assert 0 < oracle["accuracy_halted"] < 1
    for name, value in oracle.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
        assert metrics[name].dtype == jnp.float32 and metrics[name].shape == ()


def test_segments_are_detached_but_for_the_input():
    """As a loop that stops the gradient between segments; without that the gradient is another."""
    method = segments(S, explore=0.0)
    live = live_segments(OUTPUTS["halt_logit"], jnp.ones(B, jnp.int32)).astype(jnp.float32)

    def looped(params, inputs, stop):
        step, state, total = MODEL.steps(params), MODEL.embed(params, inputs), 0.0
        for i in range(S):
            state = {**state, "y": stop(state["y"])}
            state, output = step.apply(step.select(0), 0, state)
            log_p = jax.nn.log_softmax(output["logits"])
            counts = (LABELS >= 0).astype(jnp.float32)
            taken = jnp.take_along_axis(log_p, jnp.maximum(LABELS, 0)[..., None], -1)[..., 0]
            answer = -(taken * counts).sum(-1) / counts.sum(-1)
            right = ((output["logits"].argmax(-1) == LABELS) | (LABELS < 0)).all(-1)
            q = output["halt_logit"]
            halting = -jnp.where(right, jax.nn.log_sigmoid(q), jax.nn.log_sigmoid(-q))
            total += (live[i] * (answer + 0.5 * halting)).sum() / live.sum()
        return total

    loss = lambda p, x: method.loss(MODEL, p, x, LABELS, KEY, PROGRESS)[0].mean()
    found = jax.jit(jax.grad(loss, argnums=(0, 1)))(PARAMS, INPUTS)
    wanted = jax.jit(jax.grad(lambda p, x: looped(p, x, jax.lax.stop_gradient), argnums=(0, 1)))(
        PARAMS, INPUTS
    )
    whole = jax.jit(jax.grad(lambda p, x: looped(p, x, lambda y: y), argnums=(0, 1)))(
        PARAMS, INPUTS
    )
    chex.assert_trees_all_close(found, wanted, rtol=1e-3, atol=1e-5)
    assert float(jnp.abs(whole[0]["w"] - wanted[0]["w"]).max()) > 1e-2


def test_detached_steps_give_the_same_outputs():
    outputs = dx.run_all(detached(MODEL.steps(PARAMS)), MODEL.embed(PARAMS, INPUTS), S)
    chex.assert_trees_all_close(outputs, OUTPUTS, rtol=1e-5, atol=1e-6)


def test_no_row_halts_while_the_logit_is_at_its_start():
    sure = jnp.full((16, 4), -5.0)
    assert bool(live_segments(sure, jnp.ones(4, jnp.int32)).all())
    method = segments(16)
    halted = replay(method.criterion({"threshold": jnp.float32(0.5)}), {"halt_logit": sure})
    np.testing.assert_array_equal(halted.exit, [15] * 4)
    # sigmoid(-5) = .0067: from that threshold on nobody leaves, below it everyone does at once
    for threshold, exit in ((0.0068, 15), (0.0066, 0)):
        found = replay(
            method.criterion({"threshold": jnp.float32(threshold)}), {"halt_logit": sure}
        )
        np.testing.assert_array_equal(found.exit, [exit] * 4)


def test_exploration_is_drawn_row_by_row():
    least = np.asarray(least_segments(jax.random.key(3), 20_000, 16, 0.1))
    np.testing.assert_allclose((least > 1).mean(), 0.1, atol=0.011)  # five standard deviations
    counts = np.bincount(least[least > 1], minlength=17)[2:]
    assert (
        len(counts) == 15
        and counts.min() > 0.5 * counts.mean()
        and counts.max() < 1.5 * counts.mean()
    )
    assert np.asarray(least_segments(jax.random.key(3), 50, 1, 1.0)).tolist() == [1] * 50


@pytest.mark.parametrize("rule", ["right", "settled"])
def test_candidates_go_from_the_first_segments_to_full_depth(rule):
    """Against a loop over each row's segments."""
    method, costs = segments(S, rule=rule), np.arange(1.0, S + 1)
    settling = OUTPUTS | {
        "change": jnp.exp(
            -jnp.arange(S, dtype=jnp.float32)[:, None] * jnp.linspace(0.3, 2.0, B)[None]
        )
    }
    found = stored.curve_of(method, settling, LABELS, costs)
    thresholds = found.points["threshold"]
    np.testing.assert_allclose(thresholds, THRESHOLDS[rule], rtol=1e-6)
    full = int(np.flatnonzero(thresholds == {"right": 1.0, "settled": 0.0}[rule])[0])
    assert found.mean_depth[full] == S and found.mean_depth.min() < 0.6 * S
    q, change = np.asarray(settling["halt_logit"], np.float64), np.asarray(settling["change"])
    for k in (0, 8, 16, full):
        leaves = 1 / (1 + np.exp(-q)) > thresholds[k] if rule == "right" else change < thresholds[k]
        depths = [next((i + 1 for i in range(S) if leaves[i, b]), S) for b in range(B)]
        np.testing.assert_allclose(found.mean_depth[k], np.mean(depths))


def test_calibration_end_to_end():
    """Rows that know when they are right leave then, at no loss."""
    needed = np.arange(B) % S
    ready = jnp.asarray(np.arange(S)[:, None] >= needed[None])
    outputs = {
        "logits": jnp.where(
            ready[..., None, None],
            jax.nn.one_hot(jnp.maximum(LABELS, 0), C)[None],
            jnp.float32(0.1),
        ),
        "halt_logit": jnp.where(ready, 3.0, -3.0),
    }
    method, costs = segments(S), np.arange(1.0, S + 1)
    choice = stored.chosen(method, outputs, LABELS, costs, accept_loss(0.0))
    assert choice.accuracy == choice.accuracy_full == 1.0
    np.testing.assert_allclose(choice.mean_depth, np.mean(needed + 1))


def test_a_model_of_too_few_segments_is_named():
    with pytest.raises(
        ValueError, match=r"`model` has 5 segments, fewer than the 6 of training \(`most`\)"
    ):
        segments(6).loss(MODEL, PARAMS, INPUTS, LABELS, KEY, PROGRESS)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"most": 0}, "`most` must be at least 1, got 0"),
        ({"explore": 1.5}, "`explore` must lie in 0..1, got 1.5"),
        ({"halting_weight": -0.5}, "`halting_weight` must be at least 0, got -0.5"),
        ({"loss": "hinge"}, "`loss` must be 'softmax' or 'stablemax', got 'hinge'"),
        ({"rule": "sure"}, "`rule` must be 'right' or 'settled', got 'sure'"),
        ({"thresholds": [1.0, 1.5]}, "lie in 0..1"),
    ],
)
def test_refusals(arguments, text):
    with pytest.raises(ValueError) as error:
        segments(**{"most": 4} | arguments)
    assert text in str(error.value)
