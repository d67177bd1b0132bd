"""Streaming gives what run_until gives, in the order of the queue, with no slot waiting for another
and on full tiles.
"""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import dynexit as dx
from dynexit.engine.executors.tiling import default_tiling
from dynexit.engine.streaming.stream import is_tied, stream

CRITERIA = {
    "thresholds by exit": dx.criteria.max_probability_above(jnp.linspace(0.8, 0.4, 8)),
    "patience": dx.criteria.patience(2),
    "saturation": dx.criteria.saturation_above(0.9),
    "halting": dx.criteria.cumulative_halting_above(0.8),
}


@pytest.mark.parametrize("slots", [1, 5, None])
@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
def test_tied_equals_the_python_loop_in_the_order_of_the_queue(slots, criterion):
    problem = oracle.tied(rows=13, blocks=9, seed=2)
    assert is_tied(problem.step, problem.state)
    expected = oracle.run_rows(problem, criterion)
    assert len({r.exit for r in expected}) > 1
    oracle.assert_equal(
        dx.run_stream(problem.step, problem.state, 9, criterion, slots=slots),
        expected,
        tolerance=1e-4,
    )


@pytest.mark.parametrize("slots", [4, 40])
@pytest.mark.parametrize("criterion", CRITERIA.values(), ids=CRITERIA)
def test_untied_equals_the_python_loop_in_the_order_of_the_queue(slots, criterion):
    problem = oracle.homogeneous(rows=23, blocks=9, seed=2)
    assert not is_tied(problem.step, problem.state)
    expected = oracle.run_rows(problem, criterion)
    assert len({r.exit for r in expected}) > 1
    oracle.assert_equal(
        dx.run_stream(problem.step, problem.state, 9, criterion, slots=slots),
        expected,
        tolerance=1e-4,
    )


@pytest.mark.parametrize("make", [oracle.tied, oracle.homogeneous], ids=["tied", "untied"])
def test_random_depths_all_at_once_and_nobody_early(make):
    problem, rng = make(rows=17, blocks=7), np.random.default_rng(1)
    spread = [
        rng.integers(1, 8, 17),
        np.minimum(rng.geometric(0.5, 17), 7),
        np.where(np.arange(17) < 16, 1, 7),
    ]
    for depths in (*spread, np.full(17, 1), np.full(17, 4), np.full(17, 7), np.full(17, 99)):
        criterion = oracle.leave_at(depths)
        halted = dx.run_stream(problem.step, problem.state, 7, criterion, slots=4)
        oracle.assert_equal(halted, oracle.run_rows(problem, criterion), tolerance=1e-4)


@pytest.mark.parametrize("make", [oracle.tied, oracle.homogeneous], ids=["tied", "untied"])
def test_states_are_kept_or_not(make):
    problem, criterion = make(rows=11, blocks=6), oracle.leave_at(np.arange(11) % 6 + 1)
    kept, dropped = (
        dx.run_stream(problem.step, problem.state, 6, criterion, slots=3, keep_state=keep)
        for keep in (True, False)
    )
    assert dropped.state is None and jax.tree.structure(kept.state) == jax.tree.structure(
        problem.state
    )
    chex.assert_trees_all_equal(kept._replace(state=None), dropped)


def test_rows_stay_in_their_slots_while_the_queue_lasts():
    """Slot by slot, the rows that every iteration finds: one that leaves is followed by the next of
    the queue, in its slot.
    """
    found = []
    apply = lambda w, i, h: (
        jax.debug.callback(lambda h: found.append(h.astype(int).tolist()), h, ordered=False),
        (h, h),
    )[1]
    depths = [3, 1, 2, 1, 1, 4, 1, 2, 3, 1]
    step = dx.Step(lambda i: (), apply)
    dx.run_stream(step, jnp.arange(10.0), 5, oracle.leave_at(depths), slots=4)
    jax.effects_barrier()
    slots, queue, left, expected = [0, 1, 2, 3], list(range(4, 10)), dict(enumerate(depths)), []
    while None not in slots:
        expected.append(list(slots))
        for place, row in enumerate(slots):
            left[row] -= 1
            if left[row] == 0:
                slots[place] = queue.pop(0) if queue else None
    assert found[: len(expected)] == expected and len(expected) > 2


def test_steps_of_several_blocks_and_a_single_step():
    for blocks, each in ((6, 2), (2, 2)):
        flat = oracle.homogeneous(rows=13, blocks=blocks, seed=3)
        params = oracle.parameters(jax.random.split(jax.random.key(3), 2)[0], blocks)
        problem = flat._replace(
            step=dx.stacked_step(oracle.block, oracle.head, params, blocks=each),
            exits=blocks // each,
        )
        criterion = oracle.leave_at(np.arange(13) % 3 + 1)
        halted = dx.run_stream(problem.step, problem.state, blocks, criterion, slots=3)
        oracle.assert_equal(halted, oracle.run_rows(problem, criterion), tolerance=1e-4)


@pytest.mark.parametrize("slots", [1, None])
def test_weights_that_select_hides_are_found(slots):
    problem = oracle.homogeneous(rows=23, blocks=4)
    params = oracle.parameters(jax.random.split(jax.random.key(0), 2)[0], 4)
    step = dx.switched_step(
        oracle.block, oracle.head, [jax.tree.map(lambda a, i=i: a[i], params) for i in range(4)]
    )
    assert not is_tied(step, problem.state)
    criterion = oracle.leave_at(np.arange(23) % 4 + 1)
    halted = dx.run_stream(step, problem.state, 4, criterion, slots=slots)
    oracle.assert_equal(halted, oracle.run_rows(problem, criterion), tolerance=1e-4)


def test_one_switched_block():
    problem = oracle.homogeneous(rows=7, blocks=1)
    params = oracle.parameters(jax.random.split(jax.random.key(0), 2)[0], 1)
    step = dx.switched_step(oracle.block, oracle.head, [jax.tree.map(lambda a: a[0], params)])
    criterion = oracle.leave_at(np.ones(7, int))
    halted = dx.run_stream(step, problem.state, 1, criterion, slots=3)
    oracle.assert_equal(halted, oracle.run_rows(problem, criterion), tolerance=1e-4)


def test_a_step_with_tied_weights_that_reads_i_is_not_tied():
    step = dx.Step(lambda i: (), lambda w, i, h: (h + 1.0 + i.astype(jnp.float32), h))
    assert not is_tied(step, jnp.zeros(5))
    halted = dx.run_stream(step, jnp.zeros(5), 4, oracle.leave_at([1, 4, 2, 3, 1]), slots=2)
    np.testing.assert_array_equal(halted.state, [1, 10, 3, 6, 1])


def test_the_loop_turns_as_often_as_a_refilled_pool_needs():
    depths = np.array([7, 1, 1, 1, 3, 2, 9, 1, 1, 2])
    problem = oracle.tied(rows=len(depths), blocks=9)
    halted = dx.run_stream(problem.step, problem.state, 9, oracle.leave_at(depths), slots=3)
    np.testing.assert_array_equal(halted.exit_depth, depths)
    assert int(halted.rows_executed) == turned(depths, 3, default_tiling(problem.state, 10, 3))
    assert int(halted.rows_executed) < 10 * max(depths)


def turned(depths, slots, tiling):
    """The rows that run: the oracle of turns of all slots, and of the smaller tiles at the end."""
    queue, live, executed = list(depths), [], 0
    rest = dx.Tiling(tiling.sizes[1:], tiling.costs[1:]) if len(tiling.sizes) > 1 else None
    while queue or live:  # iterations that the rows in slots have still to run
        live, queue = live + queue[: slots - len(live)], queue[slots - len(live) :]
        n, whole = len(live), rest is None or queue or len(live) == slots
        fewer = not whole and rest.seconds(slots)[n] < tiling.costs[0]
        executed += int(rest.rows(slots)[n]) if fewer else slots
        live = [left - 1 for left in live if left > 1]
    return executed


@pytest.mark.parametrize("keep_state", [True, False])
def test_the_last_rows_of_a_tied_stream_run_in_smaller_tiles(keep_state):
    def block(p, h):
        return h + p

    depths = np.random.default_rng(1).integers(1, 10, 43)
    depths[[3, 40]] = 29
    queue = jnp.arange(43.0)[:, None] + jnp.zeros((43, 8192))
    tiling = default_tiling(queue, 43, 16)
    assert len(tiling.sizes) == 3
    step = dx.tied_step(block, lambda p, h: h[:, :2], jnp.float32(1.0))
    leave = oracle.leave_at(depths)
    halted = dx.run_stream(step, queue, 30, leave, slots=16, keep_state=keep_state)
    np.testing.assert_array_equal(halted.exit_depth, depths)
    np.testing.assert_array_equal(halted.output[:, 1], np.arange(43) + depths)
    if keep_state:
        np.testing.assert_array_equal(halted.state, np.asarray(queue) + depths[:, None])
    assert int(halted.rows_executed) == turned(depths, 16, tiling) < 16 * 40


def executor(depths, steps, tiling):
    """The oracle of the untied form: its tiles as (block, rows), the rows executed, and the largest
    cohort behind the queue.
    """
    tile, waiting, tiles, executed, largest = (
        tiling.sizes[0],
        [list(depths), *([] for _ in range(steps - 1))],
        [],
        0,
        0,
    )
    while any(waiting):
        full = [i for i, rows in enumerate(waiting) if len(rows) >= tile]
        i = max(full) if full else min(i for i, rows in enumerate(waiting) if rows)
        n = min(tile, len(waiting[i]))
        rows, waiting[i] = (
            (waiting[0][:n], waiting[0][n:]) if i == 0 else (waiting[i][-n:], waiting[i][:-n])
        )
        tiles.append((i, n))
        executed += int(tiling.counts(tile)[n] @ np.array(tiling.sizes))
        if i + 1 < steps:
            waiting[i + 1] += [depth for depth in rows if depth > i + 1]
            largest = max(largest, len(waiting[i + 1]))
    return tiles, executed, largest


@pytest.mark.parametrize("slots", [4, 16])
def test_tiles_are_full_whatever_the_depths(slots):
    ran = []
    note = lambda w, rows: ran.append((int(w), rows.shape[0]))
    read = lambda w, h: h[:, 0] + 0.0 * w.astype(jnp.float32)
    step = dx.Step(
        lambda i: i,
        lambda w, i, h: (jax.debug.callback(note, w, h[:, 0]), (h + 1.0, read(w, h)))[1],
    )
    queue, rng = (
        jnp.zeros((200, 8192)),
        np.random.default_rng(0),
    )  # rows wide enough for small tiles to be worth compiling
    tiling = default_tiling(queue, 200, slots)
    assert len(tiling.sizes) == 2
    for depths in (
        np.minimum(rng.geometric(0.25, 200), 12),
        rng.integers(1, 13, 200),
        np.where(np.arange(200) % 50, 1, 12),
    ):
        ran.clear()
        halted = jax.block_until_ready(
            dx.run_stream(step, queue, 12, oracle.leave_at(depths), slots=slots)
        )
        jax.effects_barrier()
        tiles, executed, largest = executor(depths, 12, tiling)
        assert largest <= 2 * slots - 1
        assert int(halted.rows_executed) == executed == sum(size for _, size in ran)
        assert {i for i, _ in ran} == set(range(depths.max()))
        for i in range(12):
            assert sum(n % slots > 0 for block, n in tiles if block == i) <= 1
            partial = (depths > i).sum() % slots  # the only ones that may not run in a tile of S
            assert (
                sum(size for block, size in ran if block == i and size < slots) <= partial + slots
            )
        np.testing.assert_array_equal(halted.exit_depth, depths)
        assert depths.sum() / int(halted.rows_executed) > 0.9


@pytest.mark.compiled
@pytest.mark.parametrize("make", [oracle.tied, oracle.homogeneous], ids=["tied", "untied"])
def test_no_buffer_is_copied_while_the_stream_runs(make):
    problem = make(rows=123, blocks=5)
    program = stream.lower(
        problem.step, problem.state, np.int32(123), 5, oracle.leave_at(np.full(123, 2)), 8, True
    ).compile()
    buffers = (
        123,
        123 + 7,
        123 + 8,
        4 * 15 + 8,
    )  # the queue, the departed of untied and of tied steps, the cohorts
    copies = [n for n in buffers if re.search(rf"= f32\[{n},4,6\]\S* copy\(", program.as_text())]
    assert re.search(r"= f32\[123,4,6\]", program.as_text()) and copies == []


@pytest.mark.parametrize("make", [oracle.tied, oracle.homogeneous], ids=["tied", "untied"])
def test_a_nan_runs_to_the_limit_and_poisons_no_other(make):
    problem = make(rows=6, blocks=5)
    state = {**problem.state, "x": problem.state["x"].at[2].set(jnp.nan)}
    halted = dx.run_stream(problem.step, state, 5, dx.criteria.max_probability_above(0.2), slots=2)
    assert int(halted.exit_depth[2]) == 5 and int(halted.nan_exits[2]) == 5
    others = np.array([0, 1, 3, 4, 5])
    assert int(halted.nan_exits[others].sum()) == 0
    clean = dx.run_stream(
        problem.step, problem.state, 5, dx.criteria.max_probability_above(0.2), slots=2
    )
    np.testing.assert_array_equal(halted.exit[others], clean.exit[others])
    np.testing.assert_allclose(
        halted.output["logits"][others], clean.output["logits"][others], rtol=1e-5, atol=1e-5
    )


def test_refusals():
    problem = oracle.tied()
    leave = dx.criteria.patience(1)
    with pytest.raises(
        TypeError,
        match=r"`step` must be one dx\.Step, got a sequence of 1: .* buffers of one shape",
    ):
        dx.run_stream([problem.step], problem.state, 9, leave)
    with pytest.raises(TypeError, match=r"`criterion` must be a dx\.Criterion, got float"):
        dx.run_stream(problem.step, problem.state, 9, 0.5)
    with pytest.raises(ValueError, match="`slots` must be at least 1, got 0"):
        dx.run_stream(problem.step, problem.state, 9, leave, slots=0)
    with pytest.raises(ValueError, match="`queue` is an empty batch"):
        dx.run_stream(problem.step, jax.tree.map(lambda a: a[:0], problem.state), 9, leave)
    with pytest.raises(
        ValueError, match=r"`criterion` has thresholds of shape \[3\], but the run has 9 exits"
    ):
        dx.run_stream(
            problem.step, problem.state, 9, dx.criteria.max_probability_above(jnp.full(3, 0.5))
        )
    for depth in (1, 2):
        halving = dx.stacked_step(
            oracle.halve, oracle.head, oracle.parameters(jax.random.key(0), depth)
        )
        with pytest.raises(
            ValueError,
            match=r"changed state\['x'\] from float32\[13, 4, 6\] to float32\[13, 2, 6\]",
        ):
            dx.run_stream(halving, problem.state, depth, leave)
