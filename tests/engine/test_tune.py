"""Tuning: what is measured, what is chosen from it, and what is refused."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import dynexit as dx

module = importlib.import_module(
    "dynexit.engine.tuning.tune"
)  # the package holds the function of that name


@pytest.fixture
def clock(monkeypatch):
    """Tiles take as long as the test says: a function of stage and rows, instead of this machine's
    seconds.
    """

    def install(seconds):
        monkeypatch.setattr(
            module,
            "_measure",
            lambda stage, state, batch, sizes, repeats: {s: seconds(stage.first, s) for s in sizes},
        )

    return install


def test_the_choice_follows_the_costs(clock):
    problem = oracle.homogeneous()
    clock(lambda stage, rows: 1.0 + rows)  # every tile costs as much as one row more
    few_deep = dx.tune(problem.step, problem.state, problem.depth, exits=np.array([0] * 9 + [5]))
    assert few_deep.executor == "compacted"
    assert (
        few_deep.seconds["compacted"]
        < few_deep.seconds["per_row"]
        < few_deep.seconds["masked"]
        <= few_deep.seconds["full"]
    )
    assert few_deep.seconds["full"] == 6 * 14.0
    clock(lambda stage, rows: 1.0)  # rows are free: the whole batch at once
    assert dx.tune(problem.step, problem.state, problem.depth).tile[0].sizes[0] == 13
    clock(lambda stage, rows: rows**2.0)  # company is dear: rows alone
    assert dx.tune(problem.step, problem.state, problem.depth).tile[0].sizes == (1,)


def test_expected_seconds_are_those_of_the_plans(clock):
    problem = oracle.homogeneous(rows=4, blocks=3)
    clock(lambda stage, rows: 10.0 + rows)
    tuned = dx.tune(problem.step, problem.state, problem.depth, exits=np.array([2]), sizes=(1, 4))
    assert tuned.seconds == {
        "compacted": 3 * 14.0,
        "masked": 3 * 14.0,
        "per_row": 3 * 4 * 11.0,
        "full": 3 * 14.0,
    }
    assert "tiles of 4/1 rows" in str(tuned) or "tiles of 4 rows" in str(tuned)


@pytest.mark.parametrize("make", [oracle.homogeneous, oracle.staged])
def test_a_tuned_run_gives_what_the_oracle_gives(make):
    problem = make(rows=5)
    tuned = dx.tune(problem.step, problem.state, problem.depth, sizes=(1, 2, 5), repeats=1)
    assert all(c > 0 for costs in tuned.costs for c in costs.values())
    assert all(list(costs.values()) == sorted(costs.values()) for costs in tuned.costs)
    criterion = dx.criteria.max_probability_above(0.6)
    halted = dx.run_until(
        problem.step, problem.state, problem.depth, criterion, "compacted", tuned.tile
    )
    oracle.assert_equal(
        halted, oracle.run_rows(problem, criterion), check_state=make is oracle.homogeneous
    )


def test_a_state_that_is_not_kept_changes_nothing_else():
    problem = oracle.homogeneous()
    criterion = dx.criteria.max_probability_above(0.6)
    for executor in ("compacted", "masked", "per_row"):
        kept, not_kept = (
            dx.run_until(problem.step, problem.state, 6, criterion, executor, keep_state=keep)
            for keep in (True, False)
        )
        assert not_kept.state is None
        np.testing.assert_array_equal(kept.exit, not_kept.exit)
        np.testing.assert_array_equal(kept.output["logits"], not_kept.output["logits"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(repeats=0), "`repeats` must be at least 1, got 0"),
        (dict(sizes=(0, 2)), "`sizes` must be within 1..13, the batch size"),
        (dict(sizes=(14,)), "`sizes` must be within 1..13, the batch size"),
        (
            dict(exits=np.array([6])),
            r"`exits` must be integers within 0..5, at least one, got int64\[1\]",
        ),
        (dict(exits=np.array([0.5])), r"`exits` must be integers within 0..5"),
        (dict(exits=np.zeros(0, int)), r"`exits` must be integers within 0..5, at least one"),
    ],
)
def test_faulty_arguments_are_refused(arguments, message):
    problem = oracle.homogeneous()
    with pytest.raises(ValueError, match=message):
        dx.tune(problem.step, problem.state, problem.depth, **arguments)


def test_tuning_while_tracing_is_refused():
    problem = oracle.homogeneous()
    with pytest.raises(
        TypeError, match=r"concrete arrays: `tune` measures time, so call it outside of jax\.jit"
    ):
        jax.jit(lambda state: dx.tune(problem.step, state, problem.depth) and state)(problem.state)


def test_tilings_must_match_the_stages():
    problem = oracle.staged()
    with pytest.raises(
        ValueError,
        match=r"`tile` must be an integer, a dx\.Tiling, or one for each of the 4 stages",
    ):
        dx.run_until(
            problem.step,
            problem.state,
            problem.depth,
            oracle.leave_at([1] * 13),
            tile=(dx.Tiling((1,), (1.0,)),),
        )


def test_the_batch_to_tune_for_may_be_one_row():
    problem = oracle.homogeneous(rows=1)
    tuned = dx.tune(problem.step, problem.state, problem.depth, repeats=1)
    assert tuned.tile[0].sizes == (1,)
    assert jnp.isfinite(jnp.asarray(list(tuned.seconds.values()))).all()
