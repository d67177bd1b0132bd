"""The compiled program: its size, the memory of a thousand calls, and what its loops do not do."""

import gc
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import dynexit as dx
from dynexit.engine.run import _run_until
from dynexit.engine.streaming.stream import stream

STATM = pathlib.Path("/proc/self/statm")
CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation)=(\{[^}]*\}|%[\w.-]+)"
)


def computations(text):
    """The lines of every computation of a compiled program, by its name."""
    found, lines = {}, []
    for line in text.splitlines():
        if line.endswith("{") and "->" in line:
            lines = found[re.search(r"%([\w.-]+) \(", line)[1]] = []
        lines.append(line)
    return found


def in_loops(text):
    """The lines that run inside of some loop, with their computation's name."""
    found = computations(text)
    names = lambda groups: set(re.findall(r"%([\w.-]+)", " ".join(groups)))
    calls = {name: names(CALLED.findall("\n".join(lines))) for name, lines in found.items()}
    todo, reached = names(re.findall(r"body=(%[\w.-]+)", text)), set()
    while todo:
        reached.add(name := todo.pop())
        todo |= calls[name] - reached
    return [line for name in sorted(reached) for line in found[name]]


@pytest.mark.compiled
def test_the_parser_finds_what_a_loop_does():
    def inner(x):
        return jax.lax.fori_loop(0, x.astype(jnp.int32)[0], lambda _, x: jnp.sort(x), x)

    text = (
        jax.jit(lambda x: jnp.cumsum(jax.lax.fori_loop(0, 5, lambda _, x: inner(x) + 1, x)))
        .lower(jnp.ones(7))
        .compile()
        .as_text()
    )
    loops = in_loops(text)
    assert any(" sort(" in line for line in loops) and any(
        " sort(" in line for line in text.splitlines()
    )
    assert not any("ENTRY" in line for line in loops) and len(loops) < len(text.splitlines())


def program(make, executor, tile=None, keep=True, rows=123):
    problem = make(rows=rows)
    criterion = dx.criteria.any_of(dx.criteria.max_probability_above(0.6), dx.criteria.patience(2))
    return _run_until.lower(
        problem.step, problem.state, problem.depth, criterion, executor, tile, keep, None
    )


@pytest.mark.compiled
@pytest.mark.parametrize(
    "make, keep",
    [
        (oracle.homogeneous, True),
        (oracle.homogeneous, False),
        (oracle.switched, True),
        (oracle.tied, False),
    ],
)
def test_the_loops_of_tiles_copy_no_state(make, keep):
    """The live rows (123 places) and the departed (a tile's end more) are written in place, tiles
    of one row among them.
    """
    tiling = (dx.Tiling((8, 1), (8.5, 1.5)),)
    text = program(make, "compacted", tiling, keep).compile().as_text()
    room = 123 + tiling[0].sizes[0] // 4 - 1  # a few exited rows are moved at a time
    assert re.search(
        r"f32\[123,4,6\]\S* (fusion|dynamic-update-slice)\(", "\n".join(in_loops(text))
    )
    copies = [
        line for line in in_loops(text) if re.search(rf"= f32\[(123|{room}),4,6\]\S* copy\(", line)
    ]
    assert copies == []


@pytest.mark.compiled
def test_tiles_of_several_rows_copy_no_state():
    tiling = (dx.Tiling((8, 2), (8.5, 2.5)),)
    text = program(oracle.homogeneous, "compacted", tiling, rows=124).compile().as_text()
    copies = [line for line in in_loops(text) if re.search(r"= f32\[12[4-9],4,6\]\S* copy\(", line)]
    assert re.search(r"f32\[124,4,6\]", text) and copies == []


def test_one_row_has_one_loop_and_no_tiles():
    loops = lambda text: len(re.findall(r"stablehlo\.while", text))
    for make in (oracle.homogeneous, oracle.switched, oracle.tied, oracle.staged):
        lower = lambda executor, rows, make=make: _lowered(make, executor, rows)
        auto, masked = lower("auto", 1), lower("masked", 1)
        assert auto == masked
        assert loops(auto) == (
            2 if make is oracle.staged else 1
        )  # one for each stage of several steps
        assert "stablehlo.sort" not in auto
        assert loops(lower("auto", 2)) > loops(auto) and "stablehlo.sort" in lower("auto", 2)


def _lowered(make, executor, rows):
    problem = make(rows=rows)
    step, depth = (tuple(x) if isinstance(x, list) else x for x in (problem.step, problem.depth))
    return _run_until.lower(
        step, problem.state, depth, oracle.leave_at([1] * rows), executor, None, True, None
    ).as_text()


def bounded(executor):
    def gradient(step, state, depth, criterion):
        loss = lambda step: (
            dx.run_bounded(step, state, depth, criterion, executor, 4).output["logits"] ** 2
        ).sum()
        return jax.grad(loss, allow_int=True)(step)

    return jax.jit(gradient, static_argnums=2)


PROGRAMS = {
    "compacted": lambda p, c: _run_until.lower(
        p.step, p.state, p.depth, c, "compacted", 4, True, None
    ),
    "masked": lambda p, c: _run_until.lower(
        p.step, p.state, p.depth, c, "masked", None, True, None
    ),
    "per_row": lambda p, c: _run_until.lower(
        p.step, p.state, p.depth, c, "per_row", None, True, None
    ),
    "stream": lambda p, c: stream.lower(p.step, p.state, np.int32(13), p.depth, c, 4, True),
    "gradient, masked": lambda p, c: bounded("masked").lower(p.step, p.state, p.depth, c),
    "gradient, compacted": lambda p, c: bounded("compacted").lower(p.step, p.state, p.depth, c),
}


@pytest.mark.compiled
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_do_not_grow_with_the_depth_and_never_call_the_host(name):
    # The masked schedule with a gradient is a tree of checkpoints, and one more level with every
    # fourfold depth: both of these depths have 3 levels. A level makes the program a third larger
    # (12 blocks: 63 kB of StableHLO, 48 blocks: 87 kB).
    shallow, deep = (20, 60) if name == "gradient, masked" else (12, 48)
    lowered, compiled = [], []
    for blocks in (shallow, deep):
        made = PROGRAMS[name](
            oracle.homogeneous(blocks=blocks), dx.criteria.max_probability_above(0.6)
        )
        lowered.append(made.as_text())
        compiled.append(made.compile().as_text())
    assert len(lowered[1]) <= 1.15 * len(lowered[0])
    assert len(compiled[1]) <= 1.15 * len(compiled[0])
    host = [
        line
        for line in compiled[1].splitlines()
        if re.search(r"callback| (infeed|outfeed|send|recv)(-done)?\(", line)
    ]
    assert host == []


def test_a_level_of_the_tree_of_checkpoints_makes_the_gradient_no_more_than_half_larger():
    sizes = []
    for blocks in (4, 16, 64, 256):
        problem = oracle.homogeneous(blocks=blocks)
        sizes.append(
            len(
                bounded("masked")
                .lower(problem.step, problem.state, blocks, dx.criteria.patience(1))
                .as_text()
            )
        )
    assert (np.diff(sizes) < 0.5 * sizes[1]).all(), sizes


@pytest.mark.parametrize("name", ["until", "bounded", "stream"])
def test_a_thousand_calls_leave_nothing_behind(name):
    traces, problem = (
        [],
        oracle.tied(rows=6, blocks=4) if name == "stream" else oracle.homogeneous(rows=6, blocks=4),
    )

    def apply(w, i, state):
        traces.append(1)
        return problem.step.apply(w, i, state)

    step = dx.Step(problem.step.select, apply)
    run = {
        "until": lambda c: dx.run_until(step, problem.state, 4, c, tile=2),
        "bounded": lambda c: dx.run_bounded(step, problem.state, 4, c),
        "stream": lambda c: dx.run_stream(step, problem.state, 4, c, slots=2),
    }[name]

    def calls(count):
        exits = {
            tuple(np.asarray(run(dx.criteria.max_probability_above(t)).exit).tolist())
            for t in np.linspace(0.3, 0.99, count)
        }
        gc.collect()
        return len(exits), len(jax.live_arrays()), len(traces), resident()

    _, arrays, traced, bytes_ = calls(100)
    exits, arrays_after, traced_after, bytes_after = calls(1000)
    assert exits > 2, "thresholds that change nothing test nothing"
    assert (arrays_after, traced_after) == (arrays, traced)
    if bytes_ is None:
        pytest.skip("no /proc: the resident size is unknown")
    limit, grown = (
        8 * 2**20,
        bytes_after - bytes_,
    )  # 8 KiB a call; the outputs of one are 0.6 KiB, its program far more
    if grown >= limit:  # on a busy machine the allocator keeps some, once; a leak grows again
        grown = calls(1000)[-1] - bytes_after
    assert grown < limit


def resident():
    """Bytes of this process in memory, or None."""
    return (
        int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if STATM.exists() else None
    )
