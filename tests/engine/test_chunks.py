"""A queue from the host in chunks gives what the whole queue gives, compiled once and drawn one
chunk ahead.
"""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import dynexit as dx


def host(tree, begin, end):
    return jax.tree.map(lambda a: np.asarray(a)[begin:end], tree)


def joined(results):
    """The chunks' results as one."""
    whole = jax.tree.map(
        lambda *leaves: np.concatenate(leaves), *[r._replace(rows_executed=()) for r in results]
    )
    return whole._replace(rows_executed=sum(int(r.rows_executed) for r in results))


@pytest.mark.parametrize("make", [oracle.tied, oracle.homogeneous], ids=["tied", "untied"])
def test_chunks_equal_the_python_loop_and_the_whole(make):
    problem = make(rows=29, blocks=6, seed=4)
    criterion = dx.criteria.any_of(
        dx.criteria.max_probability_above(jnp.linspace(0.9, 0.5, 5)), dx.criteria.patience(3)
    )
    chunks = (host(problem.state, k, k + 8) for k in range(0, 29, 8))  # the last one has 5 rows
    results = list(dx.stream_chunks(problem.step, chunks, 6, criterion, slots=4))
    assert [len(r.exit) for r in results] == [8, 8, 8, 5]
    assert all(
        isinstance(leaf, np.ndarray)
        for r in results
        for leaf in jax.tree.leaves(r._replace(rows_executed=()))
    )
    expected = oracle.run_rows(problem, criterion)
    assert len({r.exit for r in expected}) > 2
    oracle.assert_equal(joined(results), expected, tolerance=1e-4)
    whole = dx.run_stream(problem.step, problem.state, 6, criterion, slots=4)
    np.testing.assert_array_equal(joined(results).exit, whole.exit)


def test_the_rows_that_a_short_chunk_lacks_are_not_run():
    step = dx.Step(lambda i: i, lambda w, i, h: (h + 1.0, h + 0.0 * w.astype(jnp.float32)))
    never = oracle.leave_at([6] * 8)
    full, short = dx.stream_chunks(
        step, [np.zeros(8, np.float32), np.zeros(4, np.float32)], 6, never, slots=4
    )
    assert int(full.rows_executed) == 8 * 6 and int(short.rows_executed) == 4 * 6
    wide = 2**14  # rows for which tiles of one are compiled, too
    double = dx.tied_step(lambda p, h: h * p, lambda p, h: h, jnp.float32(2.0))
    full, short = dx.stream_chunks(
        double, [np.ones((8, wide), np.float32), np.ones((1, wide), np.float32)], 6, never, slots=4
    )
    assert (
        int(full.rows_executed) == 4 * 12
        and int(short.rows_executed) == 6
        and short.exit_depth.tolist() == [6]
    )


def test_nothing_is_compiled_for_later_chunks_thresholds_or_a_short_one():
    traces = []

    def block(p, h):
        traces.append(1)
        return oracle.block(p, h)

    params, state = oracle.parameters(jax.random.key(0), 6), oracle.batch_of(jax.random.key(1), 11)
    chunks = [host(state, k, k + 4) for k in (0, 4, 8)]
    seen = set()
    for t in (0.3, 0.6, 0.9):
        for _ in dx.stream_chunks(
            dx.stacked_step(block, oracle.head, params),
            chunks,
            6,
            dx.criteria.max_probability_above(t),
        ):
            seen.add(len(traces))
    assert len(seen) == 1


def test_the_next_chunk_is_drawn_before_a_result_is_given_and_arrays_may_be_used_again():
    events, array = [], np.zeros((3, 2), np.float32)

    def chunks():
        for k in range(4):
            events.append(f"draw {k}")
            array[:] = k
            yield array

    step = dx.stacked_step(lambda p, h: h + p, lambda p, h: h, jnp.zeros(2))
    for k, halted in enumerate(dx.stream_chunks(step, chunks(), 2, oracle.leave_at([1, 2, 1]))):
        events.append(f"result {k}")
        np.testing.assert_array_equal(halted.output, np.full((3, 2), float(k)))
    order = ["draw 0", "draw 1", "result 0", "draw 2", "result 1", "draw 3", "result 2", "result 3"]
    assert events == order


def test_no_chunks_no_results():
    problem = oracle.homogeneous()
    assert list(dx.stream_chunks(problem.step, [], 6, dx.criteria.patience(1))) == []


def test_refusals():
    problem, leave = oracle.homogeneous(), dx.criteria.patience(1)
    whole = host(problem.state, 0, 13)
    for chunks in (whole, whole["x"], problem.state["x"], 3):
        with pytest.raises(TypeError, match="`chunks` must be an iterable of chunks"):
            dx.stream_chunks(problem.step, chunks, 6, leave)
    with pytest.raises(TypeError, match=r"`step` must be one dx\.Step, got a sequence of 1"):
        dx.stream_chunks([problem.step], [whole], 6, leave)
    with pytest.raises(ValueError, match="`slots` must be at least 1, got 0"):
        dx.stream_chunks(problem.step, [whole], 6, leave, slots=0)
    sums = dx.Step(lambda i: (), lambda w, i, h: (h, h["x"].sum((1, 2))[:, None] + h["bias"]))
    run = lambda *chunks: list(dx.stream_chunks(sums, chunks, 6, leave))
    with pytest.raises(ValueError, match=r"`chunks\[1\]` is an empty batch"):
        run(whole, host(whole, 0, 0))
    with pytest.raises(
        ValueError,
        match=r"`chunks\[1\]`\['bias'\] is float32\[13, 6\], in the first chunk it is float32\[4, 6\]",
    ):
        run(host(whole, 0, 4), whole)
    with pytest.raises(
        ValueError, match=r"`chunks\[1\]`\['x'\] is int32\[13, 4, 6\], in the first chunk"
    ):
        run(whole, {**whole, "x": whole["x"].astype(np.int32)})
    with pytest.raises(ValueError, match=r"`chunks\[1\]` has the structure"):
        run(whole, {"x": whole["x"]})
