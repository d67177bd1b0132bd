"""Timing in turns, and the programs that are timed against each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.engine.executors.tiling import Tiling
from dynexit.evaluation import latency
from dynexit.evaluation.batches import prepared


def test_programs_run_in_turns_after_one_call_each():
    calls = []
    timing = latency.measure(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3
    )
    assert "".join(calls) == "ab" + "ababab"
    assert list(timing) == ["a", "b"] and all(t.low <= t.median <= t.high for t in timing.values())


def test_repeats_below_one_are_refused():
    with pytest.raises(ValueError, match="`repeats` must be at least 1, got 0"):
        latency.measure({}, 0)


def test_a_split_in_batches_is_filled_up_with_its_first_rows():
    batches = latency.in_batches(np.arange(7)[:, None], 3)
    assert [b.ravel().tolist() for b in batches] == [[0, 1, 2], [3, 4, 5], [6, 0, 1]]
    assert [b.ravel().tolist() for b in latency.in_batches(np.arange(2)[:, None], 5)] == [
        [0, 1, 0, 1, 0]
    ]


@pytest.mark.parametrize("tile", [8, 16])
def test_full_depth_is_the_last_exit_in_tiles_or_not(experiment, params, tile):
    model, method = experiment.model, experiment.method
    x = prepared(experiment, jnp.asarray(experiment.test.examples()["inputs"][:32]))
    state = model.embed(params, x)
    from dynexit.engine.run import run_all

    last = np.argmax(run_all(model.steps(params), state, model.depth)[-1], axis=-1)
    np.testing.assert_array_equal(latency.full_depth(model, method, params, x), last)
    np.testing.assert_array_equal(latency.full_depth(model, method, params, x, tile), last)
    assert 1 < len(set(last.tolist()))


@pytest.mark.parametrize("tile", [None, 8])
def test_all_rows_leave_together_and_every_exit_until_there_asks_the_rule(experiment, params, tile):
    model, asked = experiment.model, []

    def score(i, output, memory):
        jax.debug.callback(lambda i: asked.append(int(i)), i)
        return output[:, 0], memory

    def decide(i, score, memory):
        return score < jnp.inf, memory  # every row would exit at once

    eager = experiment.method._replace(
        criterion=lambda operating_point: dx.Criterion(score, decide)
    )
    x = prepared(experiment, jnp.asarray(experiment.test.examples()["inputs"][:16]))
    every = np.argmax(dx.run_all(model.steps(params), model.embed(params, x), model.depth), axis=-1)
    for exit in range(len(every)):
        asked.clear()
        classes = latency.depth_together(model, eager, params, None, x, jnp.int32(exit), tile)
        jax.effects_barrier()
        np.testing.assert_array_equal(classes, every[exit])
        assert sorted(asked) == sorted(list(range(exit + 1)) * (1 if tile is None else 2))
    assert not np.array_equal(every[0], every[-1])


def test_the_full_program_reads_no_early_exit(experiment, params):
    """Heads of early exits must not be in the baseline's program: NaN weights there change nothing
    and cost nothing.
    """
    x = prepared(experiment, jnp.asarray(experiment.test.examples()["inputs"][:8]))
    reads = []

    def steps(params):
        def counting(step):
            def apply(w, i, state):
                state, output = step.apply(w, i, state)
                return state, jax.pure_callback(
                    lambda o: reads.append(1) or o,
                    jax.ShapeDtypeStruct(output.shape, output.dtype),
                    output,
                )

            return step.__class__(step.select, apply, step.blocks)

        made = experiment.model.steps(params)
        return tuple(map(counting, made)) if isinstance(made, tuple) else counting(made)

    watched = experiment.model._replace(steps=steps)
    jax.block_until_ready(
        jax.jit(lambda p, x: latency.full_depth(watched, experiment.method, p, x))(params, x)
    )
    assert len(reads) == 1


def test_dynamic_depth_is_the_same_by_both_schedules(staged, operating_point):
    params, experiment = jax.jit(staged.model.init)(jax.random.key(0)), staged
    x = prepared(experiment, jnp.asarray(experiment.test.examples()["inputs"]))
    run = functools.partial(latency.dynamic_depth, experiment.model, experiment.method, params)
    tiles = [Tiling((4, 1), (4.0, 2.0))] * len(staged.model.depth)
    runs = [run(operating_point, x, "compacted", tiles), run(operating_point, x, "masked")]
    np.testing.assert_array_equal(runs[0].classes, runs[1].classes)
    np.testing.assert_array_equal(runs[0].exit_depth, runs[1].exit_depth)
    assert len(set(runs[0].exit_depth.tolist())) > 2
    assert runs[0].rows_executed < runs[1].rows_executed
