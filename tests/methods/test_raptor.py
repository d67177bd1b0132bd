"""Raptor: its two errors against loops, what the rollout may see, and a teacher that is
block-recurrent itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dynexit as dx
from dynexit.evaluation.phases import phases, similarity
from dynexit.methods.recurrent.raptor import (
    one_step_errors,
    raptor,
    rollout,
    teacher_forcing_weight,
)
from dynexit.models.distilled.block_recurrent import DepthScale
from dynexit.models.features import features
from dynexit.models.vision.settings import Vit

B, IMAGE, SIZES = 4, (4, 4, 1), dict(patch=2, width=8, heads=2)
TEACHER = Vit(depth=5, **SIZES).build(IMAGE, 3)
TAUGHT = jax.jit(TEACHER.init)(jax.random.key(0))
COUNTS = (3, 2)
FIRST = np.array([True, False, False, True, False])
STUDENT = dx.models.BlockRecurrent(counts=COUNTS, **SIZES).build(IMAGE, 3, teacher=TAUGHT)
PARAMS = jax.jit(STUDENT.init)(jax.random.key(1))
INPUTS = jax.random.normal(jax.random.key(2), (B, *IMAGE))
LABELS = jnp.array([0, 1, 2, 0], jnp.int32)
STATES = jax.jit(
    lambda taught, x: jnp.stack([TEACHER.embed(taught, x), *features(TEACHER, taught, x).values()])
)(TAUGHT, INPUTS)
ONE = jax.jit(
    lambda params, i, state: STUDENT.steps(params).apply(STUDENT.steps(params).select(i), i, state)[
        0
    ]
)


def by_loop(params, given):
    """The rollout, layer by layer: `[N, B, L, D]`."""
    x, made = STATES[0], []
    for i in range(5):
        x = ONE(params, jnp.int32(i), STATES[i] if given[i] else x)
        made.append(x)
    return np.stack(made)


@pytest.mark.parametrize(
    "progress, given", [(0.1, FIRST), (0.9, np.array([True, False, False, False, False]))]
)
def test_the_loss_is_that_of_loops(progress, given):
    method = raptor(TEACHER, TAUGHT, COUNTS)
    losses, metrics = jax.jit(
        lambda p: method.loss(STUDENT, p, INPUTS, LABELS, jax.random.key(3), jnp.float32(progress))
    )(PARAMS)
    distance = lambda a, b: ((np.asarray(a) - np.asarray(b)) ** 2).mean(axis=(1, 2))
    forced = np.mean(
        [distance(ONE(PARAMS, jnp.int32(i), STATES[i]), STATES[i + 1]) for i in range(5)], axis=0
    )
    alone = np.mean(
        [distance(x, a) for x, a in zip(by_loop(PARAMS, given), STATES[1:], strict=True)], axis=0
    )
    lam = max(0.0, 1 - progress / 0.25)
    np.testing.assert_allclose(losses, lam * forced + (1 - lam) * alone, rtol=1e-4)
    np.testing.assert_allclose(metrics["teacher_forcing"], forced.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["autoregressive"], alone.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["forced"], lam, atol=1e-6)
    assert abs(forced.mean() - alone.mean()) > 0.1 * forced.mean()


def test_the_rollout_starts_from_the_phase_and_sees_no_more():
    step = STUDENT.steps(PARAMS)
    made = rollout(step, STATES, FIRST)["state"]
    np.testing.assert_allclose(made, by_loop(PARAMS, FIRST), rtol=1e-4, atol=1e-5)
    inner = STATES.at[jnp.array([1, 2, 4])].add(7.0)
    np.testing.assert_array_equal(rollout(step, inner, FIRST)["state"], made)
    start = rollout(step, STATES.at[3].add(7.0), FIRST)["state"]
    np.testing.assert_array_equal(start[:3], made[:3])
    assert float(jnp.abs(start[3:] - made[3:]).max()) > 0.1
    assert float(jnp.abs(one_step_errors(step, inner) - one_step_errors(step, STATES)).min()) > 0.1


def test_the_weight_of_teacher_forcing_falls_over_the_first_quarter():
    found = [float(teacher_forcing_weight(jnp.float32(p))) for p in (0.0, 0.125, 0.25, 0.6)]
    assert found == [1.0, 0.5, 0.0, 0.0]
    assert float(teacher_forcing_weight(jnp.float32(0.0), forcing=0.0)) == 0.0


def test_a_phase_has_one_block_and_the_teachers_heads():
    for block, teachers in zip(
        jax.tree.leaves(PARAMS["heads"]), jax.tree.leaves(TAUGHT["blocks"]["head"]), strict=True
    ):
        np.testing.assert_array_equal(block, teachers)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(PARAMS["blocks"])} == {2}
    outputs = dx.run_all(STUDENT.steps(PARAMS), STUDENT.embed(PARAMS, INPUTS), 5)
    states = by_loop(PARAMS, [True, False, False, False, False])
    for i in range(5):
        before = STATES[0] if i == 0 else states[i - 1]
        moved = np.linalg.norm(np.reshape(states[i] - before, (B, -1)), axis=1) / np.linalg.norm(
            states[i].reshape(B, -1), axis=1
        )
        np.testing.assert_allclose(outputs["residual"][i], moved, rtol=1e-3)


def test_golden_scales_of_a_new_student_are_one():
    """t1, t2 and t3 of every layer; what they are made with is N(0, 1e-4), weights and biases
    alike.
    """
    depth = PARAMS["blocks"]["depth"]
    np.testing.assert_allclose(depth["out"]["kernel"].std(), 1e-4, rtol=0.1)
    np.testing.assert_allclose(depth["out"]["bias"].std(), 1e-4, rtol=0.3)
    scales = jax.jit(
        jax.vmap(
            lambda p: DepthScale(SIZES["width"]).apply({"params": p}, jnp.arange(1, 6), jnp.float32)
        )
    )(depth)
    assert len(scales) == 3 and all(0 < float(jnp.abs(scale - 1).max()) < 0.01 for scale in scales)


def test_the_embedding_and_the_teacher_get_no_gradient():
    method = raptor(TEACHER, TAUGHT, COUNTS)
    loss = lambda p, progress: method.loss(STUDENT, p, INPUTS, LABELS, jax.random.key(3), progress)[
        0
    ].mean()
    slope = jax.jit(jax.grad(loss))
    for progress in (0.1, 0.9):
        found = slope(PARAMS, jnp.float32(progress))
        assert all(not leaf.any() for leaf in jax.tree.leaves((found["embed"], found["heads"])))
        assert all(
            float(jnp.abs(leaf).max()) > 0
            for leaf in jax.tree.leaves(found["blocks"]["qkv"]["kernel"])
        )
    with_labels = raptor(TEACHER, TAUGHT, COUNTS, labels=1.0)
    slope = jax.jit(
        jax.grad(
            lambda p: with_labels.loss(
                STUDENT, p, INPUTS, LABELS, jax.random.key(0), jnp.float32(0.9)
            )[0].mean()
        )
    )(PARAMS)
    assert (
        slope["heads"]["logits"]["kernel"][-1].any()
        and not slope["heads"]["logits"]["kernel"][:-1].any()
    )


def test_rows_leave_where_a_phase_settles_and_not_at_its_start():
    method = raptor(TEACHER, TAUGHT, COUNTS, thresholds=(0.0, 0.1, 0.5))
    points = method.candidates.points(None, {}, None)
    np.testing.assert_allclose(points["threshold"], [[0] * 4, [0, 0.1, 0.1, 0], [0, 0.5, 0.5, 0]])
    residual = jnp.array(
        [[0.01, 0.3, 0.9], [0.2, 0.3, 0.9], [0.05, 0.3, 0.9], [0.01, 0.01, 0.01], [0.3, 0.3, 0.3]]
    )
    exits = [
        dx.replay(method.criterion({"threshold": t}), {"residual": residual}).exit.tolist()
        for t in points["threshold"]
    ]
    assert exits == [[4, 4, 4], [2, 4, 4], [1, 1, 4]]


def recurrent_teacher(counts=(3, 3), moves=(1.0, -6.0)):
    """A vision transformer whose blocks are two, each applied again and again, which move the
    tokens in different directions.
    """
    depth, which = sum(counts), np.repeat([0, 1], counts)
    model = Vit(depth=depth, **SIZES).build(IMAGE, 3)
    params = jax.jit(model.init)(jax.random.key(4))
    again = jax.tree.map(lambda a: a[which], params["blocks"]["block"])
    again["down"] = {
        **again["down"],
        "bias": jnp.zeros((depth, 8)).at[jnp.arange(depth), which].set(np.asarray(moves)[which]),
    }
    return model, {**params, "blocks": {**params["blocks"], "block": again}}


def distilled(counts, steps=600, last=1.0):
    """Errors of one step and of a rollout from a_0, relative to the states' own size, after
    training up to progress `last`.
    """
    teacher, taught = recurrent_teacher()
    method = raptor(teacher, taught, counts)
    student = dx.models.BlockRecurrent(counts=counts, **SIZES).build(IMAGE, 3, teacher=taught)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    def update(carry, k):
        params, moments = carry
        inputs = jax.random.normal(jax.random.fold_in(jax.random.key(5), k), (16, *IMAGE))
        progress = last * k / jnp.float32(steps)
        loss = lambda p: method.loss(
            student, p, inputs, jnp.zeros(16, jnp.int32), jax.random.key(0), progress
        )[0].mean()
        moved, moments = optimizer.update(jax.grad(loss)(params), moments, params)
        return (optax.apply_updates(params, moved), moments), None

    @jax.jit
    def train(params):
        (params, _), _ = jax.lax.scan(
            update, (params, optimizer.init(params)), jnp.arange(float(steps))
        )
        states = jnp.stack(
            [teacher.embed(taught, INPUTS), *features(teacher, taught, INPUTS).values()]
        )
        step, scale = student.steps(params), jnp.square(states[1:]).mean()
        alone = rollout(step, states, np.arange(6) == 0)["state"]
        return one_step_errors(step, states).mean() / scale, jnp.square(
            alone - states[1:]
        ).mean() / scale

    with jax.numpy_dtype_promotion("standard"):  # optax raises a float to an integer count
        return tuple(map(float, train(student.init(jax.random.key(6)))))


def test_golden_phases_of_seven_and_five_layers():
    """Two blocks whose moves outweigh what is random in them: random blocks that drift are cut a
    layer late, at 8.
    """
    teacher, taught = recurrent_teacher((7, 5), moves=(3.0, -24.0))
    found = phases(
        similarity(features(teacher, taught, jax.random.normal(jax.random.key(7), (32, *IMAGE)))), 2
    )
    assert found.cuts == (0, 7, 12) and found.counts == (7, 5)


@pytest.mark.slow
def test_a_block_recurrent_teacher_is_found_out_and_copied():
    teacher, taught = recurrent_teacher()
    inputs = jax.random.normal(jax.random.key(7), (32, *IMAGE))
    found = phases(similarity(features(teacher, taught, inputs)), 2)
    assert found.cuts == (0, 3, 6)
    student = dx.models.BlockRecurrent(counts=found.counts, **SIZES).build(IMAGE, 3, teacher=taught)
    params, same = (
        student.init(jax.random.key(1)),
        jax.tree.map(lambda a: a[::3], taught["blocks"]["block"]),
    )
    still = jax.tree.map(jnp.zeros_like, params["blocks"]["depth"])
    copied = student.steps({**params, "blocks": {**same, "depth": still}})
    states = jnp.stack([teacher.embed(taught, inputs), *features(teacher, taught, inputs).values()])
    np.testing.assert_allclose(
        rollout(copied, states, np.arange(6) == 0)["state"], states[1:], rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_two_phases_are_learned_by_two_blocks_and_not_by_one():
    two, one = distilled((3, 3))[1], distilled((6,))[1]
    assert two < 0.05 and one > 2 * two, (two, one)


@pytest.mark.slow
def test_teacher_forcing_alone_learns_the_step_and_not_the_rollout():
    """One block for both phases, with progress fixed at 0 and then as it should run: better at a
    step, worse on its own.
    """
    forced, trained = distilled((6,), last=0.0), distilled((6,))
    assert forced[0] < 0.02 and forced[0] < trained[0], (forced, trained)
    assert forced[1] > 4 * forced[0] and forced[1] > 1.5 * trained[1], (forced, trained)


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"counts": (3, 3)}, "`counts` must sum to the depth of `teacher`, 5, got [3, 3]"),
        ({"forcing": 2.0}, "`forcing` must lie in 0..1, got 2.0"),
        ({"joint": -1.0}, "`joint` must lie in 0..1, got -1.0"),
        ({"labels": -1.0}, "`labels` must be at least 0, got -1.0"),
        ({"thresholds": [-0.5]}, "`thresholds` must have shape [K] and be at least 0"),
    ],
)
def test_refusals(arguments, text):
    with pytest.raises(ValueError) as error:
        raptor(**{**dict(teacher=TEACHER, teacher_params=TAUGHT, counts=COUNTS), **arguments})
    assert text in str(error.value)


@pytest.mark.parametrize(
    "counts, text",
    [
        ((), "counts must hold integers of at least 1"),
        ((3, 3), "as many blocks as `counts` sums to"),
    ],
)
def test_refusals_of_the_student(counts, text):
    with pytest.raises(ValueError, match=text):
        dx.models.BlockRecurrent(counts=counts, **SIZES).build(IMAGE, 3, teacher=TAUGHT)


def test_a_student_of_another_depth_is_refused_and_none_runs_beyond_its_layers():
    short = dx.models.BlockRecurrent(counts=(2, 2), **SIZES).build(IMAGE, 3)
    params = short.init(jax.random.key(0))
    with pytest.raises(
        ValueError, match="`model` must have the 5 layers that `counts` sums to, got a depth of 4"
    ):
        raptor(TEACHER, TAUGHT, COUNTS).loss(
            short, params, INPUTS, LABELS, jax.random.key(0), jnp.float32(0.0)
        )
    with pytest.raises(ValueError, match="`depth` is 8, and `step` is made for 5 blocks at most"):
        dx.run_all(STUDENT.steps(PARAMS), STUDENT.embed(PARAMS, INPUTS), 8)
