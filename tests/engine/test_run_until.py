"""run_until against the Python loop, for every criterion and schedule, on rows that leave at
different depths.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import dynexit as dx

EXECUTORS = [("masked", None), ("compacted", 5)]
ALL_SCHEDULES = [*EXECUTORS, ("per_row", None), ("compacted", 1), ("compacted", 64), ("auto", None)]

CRITERIA = {
    "max probability": lambda exits: dx.criteria.max_probability_above(
        jnp.linspace(0.7, 0.5, exits - 1)
    ),
    "max probability, temperature": lambda exits: dx.criteria.max_probability_above(
        0.5, temperature=jnp.linspace(2.0, 1.0, exits)
    ),
    "entropy": lambda exits: dx.criteria.entropy_below(0.9),
    "margin": lambda exits: dx.criteria.margin_above(0.3),
    "energy": lambda exits: dx.criteria.energy_below(-2.5),
    "patience": lambda exits: dx.criteria.patience(1),
    "gate": lambda exits: dx.criteria.gate_above(0.4),
    "cumulative halting": lambda exits: dx.criteria.cumulative_halting_above(0.7),
    "divergence": lambda exits: dx.criteria.divergence_below(0.1),
    "saturation": lambda exits: dx.criteria.saturation_above(0.9),
    "any of": lambda exits: dx.criteria.any_of(
        dx.criteria.patience(2), dx.criteria.max_probability_above(0.8)
    ),
    "all of": lambda exits: dx.criteria.all_of(
        dx.criteria.divergence_below(0.5), dx.criteria.entropy_below(1.2)
    ),
    "not before": lambda exits: dx.criteria.not_before(3, dx.criteria.entropy_below(0.4)),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_leaves_where_the_python_loop_leaves(name):
    problem = oracle.homogeneous()
    criterion = CRITERIA[name](problem.exits)
    expected = oracle.run_rows(problem, criterion)
    assert len({r.exit for r in expected}) > 1, (
        "a batch whose rows all leave together tests nothing"
    )
    for executor, tile in ALL_SCHEDULES if name in ("patience", "saturation") else EXECUTORS:
        halted = dx.run_until(
            problem.step, problem.state, problem.depth, criterion, executor=executor, tile=tile
        )
        oracle.assert_equal(halted, expected)


@pytest.mark.parametrize("name", ["saturation"])
def test_stages_of_different_shapes(name):
    problem = oracle.staged(seed=1)
    criterion = CRITERIA[name](problem.exits)
    expected = oracle.run_rows(problem, criterion)
    assert len({r.exit for r in expected}) > 2
    halves = [
        jax.tree.leaves(s)[0].shape
        for s in dx.run_until(problem.step, problem.state, problem.depth, criterion).state
    ]
    assert halves == [(13, 6), (13, 6), (13, 6), (13, 6)]
    reference = dx.run_until(
        problem.step, problem.state, problem.depth, criterion, executor="masked"
    )
    for executor, tile in [
        ("masked", None),
        ("per_row", None),
        ("compacted", 4),
        ("compacted", 64),
    ]:
        halted = dx.run_until(
            problem.step, problem.state, problem.depth, criterion, executor=executor, tile=tile
        )
        oracle.assert_equal(halted, expected, check_state=False)
        chex.assert_trees_all_close(halted.state, reference.state, rtol=1e-5, atol=1e-5)
    ends = np.cumsum(problem.depth)
    for b, row in enumerate(
        expected
    ):  # the state of the stage it left is the row's, later ones are zeros
        stage = int(np.searchsorted(ends, row.exit, side="right"))
        np.testing.assert_allclose(
            reference.state[stage]["x"][b], row.state["x"][0], rtol=1e-5, atol=1e-5
        )
        for later in reference.state[stage + 1 :]:
            assert not np.asarray(later["x"][b]).any()


@pytest.mark.parametrize("rows", [1, 17])
@pytest.mark.parametrize(
    "kind", ["all at the first exit", "none before the last", "one stays", "mixed"]
)
def test_extremes_of_the_depths(rows, kind):
    problem = oracle.homogeneous(rows=rows)
    depths = {
        "all at the first exit": [1] * rows,
        "none before the last": [6] * rows,
        "one stays": [1] * (rows - 1) + [6],
        "mixed": list(np.random.default_rng(rows).integers(1, 7, rows)),
    }[kind]
    criterion = oracle.leave_at(depths)
    outputs = dx.run_all(problem.step, problem.state, problem.depth)
    for executor, tile in EXECUTORS:
        halted = dx.run_until(
            problem.step, problem.state, problem.depth, criterion, executor=executor, tile=tile
        )
        np.testing.assert_array_equal(halted.exit_depth, depths)
        expected = jax.tree.map(lambda a: a[np.asarray(depths) - 1, np.arange(rows)], outputs)
        chex.assert_trees_all_close(halted.output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("where", ["everywhere", "first exit", "last exit"])
def test_a_nan_stays_counted_and_poisons_no_other_row(where):
    blocks = 5

    def head(p, h):
        poison = (h["id"] == 3) & {
            "everywhere": p["i"] >= 0,
            "first exit": p["i"] == 0,
            "last exit": p["i"] == blocks - 1,
        }[where]
        return jnp.where(poison[:, None], jnp.nan, h["x"] * p["i"].astype(jnp.float32))

    step = dx.stacked_step(lambda p, h: h, head, {"i": jnp.arange(blocks)})
    state = {"x": jax.random.normal(jax.random.key(0), (9, 4)), "id": jnp.arange(9)}
    problem = oracle.Problem(step, blocks, state, blocks)
    for criterion in (dx.criteria.max_probability_above(0.5), dx.criteria.patience(1)):
        expected = oracle.run_rows(problem, criterion)
        assert (
            expected[3].nan_exits == {"everywhere": blocks, "first exit": 1, "last exit": 0}[where]
            or where == "last exit"
        )
        assert where != "everywhere" or expected[3].exit == blocks - 1
        for executor, tile in EXECUTORS:
            halted = dx.run_until(step, state, blocks, criterion, executor=executor, tile=tile)
            oracle.assert_equal(halted, expected)


def test_permuting_the_batch_permutes_the_result_and_a_row_alone_equals_the_row_in_company():
    problem = oracle.homogeneous(rows=11)
    criterion = dx.criteria.entropy_below(1.0)
    order = np.random.default_rng(0).permutation(11)
    run = lambda state: dx.run_until(
        problem.step, state, problem.depth, criterion, executor="compacted", tile=4
    )
    whole = run(problem.state)
    permuted = run(jax.tree.map(lambda a: a[order], problem.state))
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda a, b: same(a[order], b),
        whole._replace(rows_executed=whole.exit),
        permuted._replace(rows_executed=permuted.exit),
    )
    for b in range(11):
        alone = run(oracle.row_of(problem.state, b))
        jax.tree.map(lambda a, c, b=b: same(a[b], c[0]), whole.output, alone.output)
        assert int(alone.exit[0]) == int(whole.exit[b])


def test_several_blocks_a_step_and_switched_weights():
    keys = jax.random.split(jax.random.key(3), 2)
    params = oracle.parameters(keys[0], 6)
    problem = oracle.Problem(
        dx.stacked_step(oracle.block, oracle.head, params, blocks=2),
        6,
        oracle.batch_of(keys[1], 9),
        3,
    )
    criterion = dx.criteria.max_probability_above(0.95)
    expected = oracle.run_rows(problem, criterion)
    assert {r.depth for r in expected} <= {2, 4, 6} and len({r.depth for r in expected}) > 1
    oracle.assert_equal(dx.run_until(problem.step, problem.state, 6, criterion, tile=4), expected)

    single = dx.run_all(dx.stacked_step(oracle.block, oracle.head, params), problem.state, 6)
    grouped = dx.run_all(problem.step, problem.state, 6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1::2], b, rtol=1e-5, atol=1e-5), single, grouped
    )

    switched = dx.switched_step(oracle.block, oracle.head, dx.unstack(params))
    stacked = dx.stacked_step(oracle.block, oracle.head, params)
    a, b = (dx.run_until(step, problem.state, 6, criterion, tile=4) for step in (switched, stacked))
    chex.assert_trees_all_close(a, b, rtol=1e-5, atol=1e-5)


def test_run_full_is_the_last_exit_of_run_all():
    for problem in (oracle.homogeneous(), oracle.staged(), oracle.tied()):
        _, output = dx.run_full(problem.step, problem.state, problem.depth)
        outputs = dx.run_all(problem.step, problem.state, problem.depth)
        assert jax.tree.leaves(outputs)[0].shape[0] == problem.exits
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b[-1], rtol=1e-5, atol=1e-5), output, outputs
        )


def test_run_all_differentiates_as_the_python_loop():
    keys = jax.random.split(jax.random.key(5), 2)
    params, state = oracle.parameters(keys[0], 3), oracle.batch_of(keys[1], 4)

    def scanned(params):
        return (
            dx.run_all(dx.stacked_step(oracle.block, oracle.head, params), state, 3)["logits"] ** 2
        ).sum()

    def looped(params):
        h, total = state, 0.0
        for i in range(3):
            p = jax.tree.map(lambda a, i=i: a[i], params)
            h = oracle.block(p, h)
            total += (oracle.head(p, h)["logits"] ** 2).sum()
        return total

    a, b = jax.grad(scanned)(params), jax.grad(looped)(params)
    chex.assert_trees_all_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [oracle.homogeneous, oracle.staged, oracle.tied])
def test_replay_on_stored_outputs_equals_the_live_run(make):
    problem = make()
    outputs = dx.run_all(problem.step, problem.state, problem.depth)
    for name in ("max probability, temperature", "divergence", "all of"):
        criterion = CRITERIA[name](problem.exits)
        live = dx.run_until(problem.step, problem.state, problem.depth, criterion, tile=4)
        stored = dx.replay(criterion, outputs)
        np.testing.assert_array_equal(live.exit, stored.exit, err_msg=name)
        chex.assert_trees_all_close(live.output, stored.output, rtol=1e-5, atol=1e-5)
        chex.assert_trees_all_close(live.memory, stored.memory, rtol=1e-4, atol=1e-4)
        assert int(stored.rows_executed) == int((stored.exit + 1).sum())
