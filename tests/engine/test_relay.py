"""Rows that go through one run after another: against a Python loop for every row, in tiles of any
size.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.engine.streaming.relay import run_relay

ROWS, DEPTH = 5, 6
GOALS = (
    np.random.default_rng(0).integers(1, 9, size=(ROWS, 4)).astype(np.float32)
)  # some beyond the limit of 6


def add(i, state):
    """Counts the iterations of a run, against its goal, and notes the number that each was given."""
    rows = jnp.arange(ROWS)
    total, goal = state["sum"] + 1.0, jnp.asarray(GOALS)[rows, jnp.minimum(state["run"], 3)]
    return {**state, "sum": total, "seen": state["seen"].at[rows, i].add(1)}, {"gate": total / goal}


def again(state, output, of, valid, depth):
    to, run = jnp.where(valid, of, ROWS), state["run"][of]
    put = lambda a, value: a.at[to].set(value, mode="drop")
    state = {
        **state,
        "sum": put(state["sum"], 0.0),
        "run": put(state["run"], run + 1),
        "depths": state["depths"].at[to, run].set(depth, mode="drop"),
        "gates": state["gates"].at[to, run].set(output["gate"], mode="drop"),
    }
    return state, run + 1 == jnp.asarray([4, 1, 4, 2, 3])[of]


def begun():
    zero = jnp.zeros(ROWS)
    return {
        "sum": zero,
        "run": zero.astype(jnp.int32),
        "depths": jnp.zeros((ROWS, 4), jnp.int32),
        "gates": jnp.zeros((ROWS, 4)),
        "seen": jnp.zeros((ROWS, DEPTH), jnp.int32),
    }


RULE = dx.criteria.consecutive(
    2, dx.criteria.gate_above(0.999)
)  # has a memory, which must begin anew


@pytest.mark.parametrize("sizes", [(5,), (2, 1), (4, 3, 1)])
def test_every_run_is_what_it_would_be_alone(sizes):
    over = jnp.zeros(ROWS, bool).at[1].set(True)  # row 1 has nothing to do
    state, _, turns = run_relay(
        add, again, begun(), DEPTH, RULE, over, dx.Tiling(sizes, tuple(map(float, sizes)))
    )
    lengths = []
    for row, runs in enumerate([4, 0, 4, 2, 3]):
        depths = [min(DEPTH, int(goal) + 1) for goal in GOALS[row, :runs]]  # two in a row
        assert state["depths"][row].tolist() == depths + [0] * (4 - runs)
        np.testing.assert_allclose(
            state["gates"][row, :runs], np.array(depths) / GOALS[row, :runs], rtol=1e-6
        )
        lengths.append(sum(depths))
        assert state["seen"][row, 0] >= runs, "each run began at iteration 0"
    assert turns == max(lengths)


def test_a_nan_runs_to_the_limit_is_counted_and_stays_alone():
    spoilt = lambda i, state: (
        lambda s, o: (
            s,
            {"gate": jnp.where((jnp.arange(ROWS) == 2) & (s["run"] == 1), jnp.nan, o["gate"])},
        )
    )(*add(i, state))
    over, tiling = jnp.zeros(ROWS, bool), dx.Tiling((2, 1), (2.0, 1.0))
    sound, broken = (run_relay(f, again, begun(), DEPTH, RULE, over, tiling) for f in (add, spoilt))
    assert sound.nan_exits.tolist() == [0] * ROWS and broken.nan_exits.tolist() == [
        0,
        0,
        DEPTH,
        0,
        0,
    ]
    assert broken.state["depths"][2, 1] == DEPTH
    others = np.arange(ROWS) != 2
    np.testing.assert_array_equal(broken.state["depths"][others], sound.state["depths"][others])


def test_all_over_is_no_turn_and_refusals():
    tiling = dx.Tiling((1,), (1.0,))
    assert run_relay(add, again, begun(), DEPTH, RULE, jnp.ones(ROWS, bool), tiling).turns == 0
    with pytest.raises(ValueError, match="`depth` must be at least 1"):
        run_relay(add, again, begun(), 0, RULE, jnp.zeros(ROWS, bool), tiling)
    for over in (jnp.zeros(0, bool), jnp.zeros((3, 1), bool), jnp.zeros(ROWS)):
        with pytest.raises(ValueError, match=r"`over` must be bool \[B\] of at least one row"):
            run_relay(add, again, begun(), DEPTH, RULE, over, tiling)
    with pytest.raises(ValueError, match="thresholds of shape"):
        run_relay(
            add,
            again,
            begun(),
            DEPTH,
            dx.criteria.gate_above(jnp.ones(2)),
            jnp.zeros(ROWS, bool),
            tiling,
        )
