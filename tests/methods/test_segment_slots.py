"""Segments in slots against a loop over slots, the reset of a slot bit by bit, and a 4 x 4 Sudoku
learned in slots.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.methods.recurrent.segments import least_segments, segments
from dynexit.training.parallel.mesh import make_mesh
from dynexit.training.parallel.placement import put_batch
from dynexit.training.state import create_state
from dynexit.training.step import make_train_step

S, B, L, V, C, W = 4, 16, 3, 5, 4, 0.7
PROGRESS = jnp.float32(0.0)
MODEL = dx.models.Recursive(width=8, segments=S, inner=1, cycles=2, layers=1).build(
    dx.Tokens(V, L), C
)
METHOD = segments(S, explore=0.5, halting_weight=W, refill=True)


def params():
    drawn = jax.jit(MODEL.init)(jax.random.key(0))
    drawn["head"]["halt"] = {
        "kernel": jnp.linspace(-2.0, 2.0, 8)[:, None],
        "bias": jnp.full(1, 0.3),
    }  # some halt, some do not
    return drawn


PARAMS = params()


def batch(update):
    random = np.random.default_rng(update)
    return jnp.asarray(random.integers(0, V, (B, L))), jnp.asarray(random.integers(0, C, (B, L)))


def begun():
    inputs, labels = batch(0)
    return METHOD.carried.begin(MODEL, PARAMS, jnp.zeros_like(inputs), jnp.zeros_like(labels))


@jax.jit
def update(carry, inputs, labels, key):
    return METHOD.carried.loss(MODEL, PARAMS, carry, inputs, labels, key, PROGRESS)


def test_losses_metrics_and_slots_are_a_loop_over_slots():
    step, carry = MODEL.steps(PARAMS), begun()
    slots, refilled, halts = [None] * B, [], 0
    one = jax.jit(lambda state: step.apply(step.select(0), 0, state))
    for number in range(9):
        (inputs, labels), key = batch(number), jax.random.key(number)
        losses, metrics, carry = update(carry, inputs, labels, key)
        least, wanted, done = np.asarray(least_segments(key, B, S, 0.5)), [], []
        refilled.append(sum(slot is None for slot in slots))
        for b in range(B):
            if slots[b] is None:
                state = MODEL.embed(PARAMS, inputs[b : b + 1])
                slots[b] = {"state": state, "labels": labels[b], "taken": 0, "least": least[b]}
            slot = slots[b]
            slot["state"], output = one(slot["state"])
            slot["taken"] += 1
            log_p, q = (
                np.asarray(jax.nn.log_softmax(output["logits"][0])),
                float(output["halt_logit"][0]),
            )
            right = (log_p.argmax(-1) == np.asarray(slot["labels"])).all()
            chance = 1 / (1 + np.exp(-q))
            wanted.append(
                -log_p[np.arange(L), slot["labels"]].mean()
                - W * np.log(chance if right else 1 - chance)
            )
            done.append((q > 0 and slot["taken"] >= slot["least"]) or slot["taken"] == S)
        np.testing.assert_allclose(losses, wanted, rtol=1e-3)
        np.testing.assert_array_equal(carry["halted"], done)
        np.testing.assert_array_equal(carry["taken"], [slot["taken"] for slot in slots])
        np.testing.assert_allclose(
            carry["state"]["z"][3], slots[3]["state"]["z"][0], rtol=1e-4, atol=1e-5
        )
        told = {
            "refilled": refilled[-1] / B,
            "halted": np.mean(done),
            "slot_segments": np.mean([s["taken"] for s in slots]),
        }
        for name, value in told.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-6)
        halts += sum(done)
        slots = [None if d else slot for d, slot in zip(done, slots, strict=True)]
    assert refilled[0] == B and 0 < min(refilled[1:]) and max(refilled[1:]) < B and halts > 2 * B


def test_a_halted_slot_begins_anew_bit_by_bit():
    """It differs in nothing from a slot that held no row before, whatever it held."""
    inputs, labels = batch(1)
    carry = update(begun(), *batch(0), jax.random.key(0))[2]
    free = np.asarray(carry["halted"])
    assert 0 < free.sum() < B
    after = update(carry, inputs, labels, jax.random.key(1))[2]
    fresh = update(begun(), inputs, labels, jax.random.key(1))[2]
    same = lambda a, b: np.asarray(a)[free].tobytes() == np.asarray(b)[free].tobytes()
    assert all(jax.tree.leaves(jax.tree.map(same, after, fresh)))
    np.testing.assert_array_equal(after["inputs"][~free], carry["inputs"][~free])
    assert (np.asarray(after["taken"])[~free] == 2).all()


def test_no_gradient_reaches_the_segment_before_but_through_the_input():
    carry = update(begun(), *batch(0), jax.random.key(0))[2]
    loss = lambda p, carry: METHOD.carried.loss(
        MODEL, p, carry, *batch(1), jax.random.key(1), PROGRESS
    )[0].mean()
    by_state = jax.jit(jax.grad(lambda state: loss(PARAMS, {**carry, "state": state})))(
        carry["state"]
    )
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(by_state))
    by_params = jax.jit(jax.grad(lambda p: loss(p, carry)))(PARAMS)
    assert (
        float(jnp.abs(by_params["embed"]["token_embedding"]).max()) > 0
        and float(jnp.abs(by_params["net"]["mlp0"]["down"]["kernel"]).max()) > 0
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_train_step_carries_the_slots(precision):
    import dataclasses

    from dynexit.core.settings import Training
    from dynexit.data.tasks.sudoku import sudoku

    train, calibration, test = sudoku(2, (4, 6), examples=8)
    model = dx.models.Recursive(width=16, segments=S, inner=1, cycles=1, layers=1).build(
        dx.Tokens(5, 16), 4
    )
    experiment = dx.Experiment(
        model, METHOD, train, calibration, test, None, None, ("1", "2", "3", "4")
    )
    settings = dataclasses.replace(
        Training(), steps=40, batch_size=16, learning_rate=3e-3, precision=precision
    )
    mesh = make_mesh()
    state, step = (
        create_state(experiment, settings, 0, mesh),
        make_train_step(experiment, settings, mesh),
    )
    losses = []
    for i in range(40):
        state, metrics = step(state, put_batch(train.batch(0, i, 16), mesh))
        losses.append(float(metrics["loss_answer"]))
        if i == 0:
            assert float(metrics["refilled"]) == 1.0
    assert state.carry is not None and int(state.carry["taken"].max()) > 1
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_models_that_cannot_fill_slots_are_refused():
    short = dx.models.Recursive(width=8, segments=2, inner=1, cycles=2, layers=1).build(
        dx.Tokens(V, L), C
    )
    with pytest.raises(ValueError, match="`model` has 2 segments, fewer than the 4 of training"):
        METHOD.carried.begin(short, PARAMS, *batch(0))
    stacked = dx.models.Mlp(width=8, depth=S).build((4,), C)
    with pytest.raises(ValueError, match="`model` must be weight-tied"):
        METHOD.carried.begin(
            stacked, stacked.init(jax.random.key(0)), jnp.ones((B, 4)), jnp.zeros(B, jnp.int32)
        )
