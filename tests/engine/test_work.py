"""The work that really ran: which blocks, how many rows, how many compilations, and programs for
other machines.
"""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import dynexit as dx
from dynexit.engine.counts import counted, no_rows, summed, total


@pytest.mark.parametrize(
    "costs", [(4.0, 1.0), (2.0, 1.0)], ids=["nothing in vain", "a ragged last tile"]
)
def test_rows_executed_counts_the_tiles_that_ran(costs):
    depths = np.array([1, 6, 2, 2, 3, 1, 1, 5, 2, 1, 1, 4, 1])
    step = dx.Step(lambda i: (), lambda w, i, h: (h + 1.0, h[:, :1]))
    tiling = dx.Tiling((4, 1), costs)
    run = lambda executor: dx.run_until(
        step, jnp.zeros((13, 1)), 6, oracle.leave_at(depths), executor=executor, tile=tiling
    )
    live = [int((depths > i).sum()) for i in range(6)]
    assert live == [13, 7, 4, 3, 2, 1]
    ran = (
        [13, 7, 4, 3, 2, 1] if costs[0] == 4.0 else [13, 8, 4, 4, 2, 1]
    )  # a tile of 4 as dear as two rows alone
    assert int(run("masked").rows_executed) == len(depths) * depths.max()
    assert int(run("per_row").rows_executed) == depths.sum()
    assert int(run("compacted").rows_executed) == sum(ran)
    np.testing.assert_array_equal(run("compacted").output[:, 0], depths - 1.0)


@pytest.mark.parametrize("executor", ["masked", "compacted"])
def test_blocks_beyond_the_deepest_row_never_run(executor):
    ran = []
    step = dx.Step(
        lambda i: i,
        lambda w, i, h: (
            jax.debug.callback(lambda i, rows: ran.append((int(i), rows.shape[0])), i, h),
            (h + 1.0, h),
        )[1],
    )
    depths = [2, 4, 1, 1, 1, 2, 1, 1, 1]
    halted = dx.run_until(
        step, jnp.zeros(9), 12, oracle.leave_at(depths), executor=executor, tile=4
    )
    jax.block_until_ready(halted)
    jax.effects_barrier()
    blocks = [i for i, _ in ran]
    assert sorted(set(blocks)) == list(range(max(depths)))
    assert sum(rows for _, rows in ran) == int(halted.rows_executed)
    if executor == "masked":
        assert sorted(blocks) == list(range(max(depths)))


def test_stages_that_no_row_enters_do_not_run():
    problem = oracle.staged()
    rows = jax.tree.leaves(problem.state)[0].shape[0]
    for executor in ("masked", "compacted"):
        halted = dx.run_until(
            problem.step,
            problem.state,
            problem.depth,
            oracle.leave_at([2] * rows),
            executor=executor,
            tile=rows,
        )
        assert int(halted.rows_executed) == 2 * rows


def test_nothing_recompiles_when_thresholds_temperatures_or_the_mix_of_depths_change():
    traces = []

    def block(p, h):
        traces.append(1)
        return oracle.block(p, h)

    keys = jax.random.split(jax.random.key(0), 2)
    params, state = oracle.parameters(keys[0], 6), oracle.batch_of(keys[1], 13)
    runs = {
        "until": lambda c: dx.run_until(
            dx.stacked_step(block, oracle.head, params), state, 6, c, tile=4
        ),
        "bounded": lambda c: dx.run_bounded(
            dx.stacked_step(block, oracle.head, params), state, 6, c
        ),
        "stream": lambda c: dx.run_stream(
            dx.tied_step(block, oracle.head, jax.tree.map(lambda a: a[0], params)), state, 6, c
        ),
        "stream untied": lambda c: dx.run_stream(
            dx.stacked_step(block, oracle.head, params), state, 6, c, slots=4
        ),
    }
    for name, run in runs.items():
        seen, depths = set(), set()
        for t in (0.3, 0.5, 0.7, 0.99):
            for temperature in (0.5, 2.0):
                c = dx.criteria.any_of(
                    dx.criteria.max_probability_above(jnp.full(5, t), temperature=temperature),
                    dx.criteria.patience(int(10 * t)),
                )
                depths.add(tuple(np.asarray(run(c).exit)))
                seen.add(len(traces))
        assert len(depths) > 2, name
        assert len(seen) == 1, f"{name} traced the block again when only values changed"


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_every_primitive_lowers_for_every_platform(platform):
    flat, stages, loop = oracle.homogeneous(), oracle.staged(), oracle.tied()
    criterion = dx.criteria.any_of(dx.criteria.max_probability_above(0.6), dx.criteria.patience(2))
    outputs = dx.run_all(flat.step, flat.state, flat.depth)
    programs = {
        "run_all": lambda s: dx.run_all(flat.step, s, flat.depth),
        "run_full": lambda s: dx.run_full(flat.step, s, flat.depth),
        "masked": lambda s: dx.run_until(flat.step, s, flat.depth, criterion, executor="masked"),
        "compacted": lambda s: dx.run_until(
            flat.step, s, flat.depth, criterion, executor="compacted", tile=4
        ),
        "per_row": lambda s: dx.run_until(flat.step, s, flat.depth, criterion, executor="per_row"),
        "stages": lambda s: dx.run_until(stages.step, s, stages.depth, criterion, tile=4),
        "stream": lambda s: dx.run_stream(loop.step, s, loop.depth, criterion, slots=4),
        "stream untied": lambda s: dx.run_stream(flat.step, s, flat.depth, criterion, slots=4),
        "bounded": lambda s: dx.run_bounded(flat.step, s, flat.depth, criterion),
        "replay": lambda s: dx.replay(criterion, outputs),
        "gradient": jax.grad(
            lambda s: dx.run_bounded(flat.step, s, flat.depth, criterion).output["logits"].sum()
        ),
    }
    for name, program in programs.items():
        exported = jax.export.export(jax.jit(program), platforms=[platform])(flat.state)
        assert exported.platforms == (platform,), name
        assert "stablehlo.while" in exported.mlir_module(), name


def test_inside_jit_vmap_over_thresholds_and_no_host_transfer():
    problem = oracle.homogeneous()
    outputs = dx.run_all(problem.step, problem.state, problem.depth)
    thresholds = jnp.linspace(0.3, 0.9, 5)
    swept = jax.vmap(lambda t: dx.replay(dx.criteria.max_probability_above(t), outputs).exit)(
        thresholds
    )
    run = jax.jit(
        lambda t: (
            dx.run_until(
                problem.step, problem.state, 6, dx.criteria.max_probability_above(t), tile=4
            ).exit
        )
    )
    one_by_one = []
    for t in thresholds:
        with jax.transfer_guard("allow"):
            one_by_one.append(run(t))
    np.testing.assert_array_equal(swept, jnp.stack(one_by_one))
    text = (
        jax.jit(lambda s: dx.run_until(problem.step, s, 6, dx.criteria.patience(1), tile=4))
        .lower(problem.state)
        .as_text()
    )
    assert "callback" not in text and "outfeed" not in text and "stablehlo.while" in text


def test_counters_are_exact_beyond_the_range_of_an_int32():
    """Two words from just below 2^31 and 2^32, against Python's integers."""
    assert no_rows(2**31 - 1).dtype == jnp.int32 and no_rows(2**31).dtype == jnp.uint32
    add = jax.jit(lambda count, rows: (counted(count, rows), total(counted(count, rows))))
    count, exact = no_rows(2**40), 0
    for rows in (2**31 - 1, 5, 2**31 - 1, 2**31 - 1, 17, 0, 2**30):
        count, found = add(count, jnp.int32(rows))
        exact += rows
        assert int(found) == exact and found.dtype == jnp.int64
    assert int(summed(jnp.full(3, 2**30, jnp.int32), 3 * 2**30)) == 3 * 2**30
    assert summed(jnp.full(3, 2, jnp.int32), 6).dtype == jnp.int32


@pytest.mark.parametrize(
    "executor, size, depth",
    [(name, 2**12, 2**20) for name in ("masked", "compacted", "stream")]
    + [("bounded", 2**20, 2**12)],
)
def test_rows_executed_beyond_the_range_of_an_int32(executor, size, depth):
    """Rows x steps that shapes allow for exceed 2^31; each row takes 1 step."""
    step = dx.tied_step(lambda p, h: h + p, lambda p, h: {"gate": h}, jnp.float32(1.0))
    rows, leave = jnp.zeros(size), dx.criteria.gate_above(0.5)
    if executor == "stream":
        halted = dx.run_stream(step, rows, depth, leave, slots=2**10)
    elif executor == "bounded":
        halted = dx.run_bounded(step, rows, depth, leave)
    else:
        halted = dx.run_until(step, rows, depth, leave, executor, tile=2**10)
    assert halted.rows_executed.dtype == jnp.int64 and int(halted.rows_executed) == size


@pytest.mark.slow
def test_a_run_of_more_than_2_to_the_31_rows():
    step = dx.tied_step(lambda p, h: h * p, lambda p, h: {"gate": h}, jnp.float32(1.0))
    rows, leave = jnp.zeros(2**16), dx.criteria.gate_above(0.5)
    halted = dx.run_until(step, rows, 40_000, leave, "masked", keep_state=False)
    assert int(halted.rows_executed) == 2**16 * 40_000
