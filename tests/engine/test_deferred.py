"""Entries that are read late: the same results as when everything is read at every exit, and none
of the work on the way.
"""

import functools
import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import dynexit as dx
from dynexit import criteria
from dynexit.core.cost import cost_of
from dynexit.engine.deferred import deferred_parts, deferred_readout, read_throughout
from dynexit.engine.steps import every_iteration, rematerialised
from dynexit.evaluation.costs import costs_of
from dynexit.transforms.best_so_far import best_so_far as best_so_far
from dynexit.transforms.stochastic_depth import dropped_blocks

B, D, C, N = 7, 5, 37, 6  # of C entries there is but one kind
KEYS = jax.random.split(jax.random.key(0), 4)
STATE = {
    "h": jnp.arange(1.0, B + 1)[:, None] * jax.random.normal(KEYS[0], (B, D)),
    "residual": jnp.zeros(B),
}
HEAD = jax.random.normal(KEYS[1], (D, C))
ONE = 0.7 * jnp.eye(D) + 0.05 * jax.random.normal(KEYS[2], (D, D))
MANY = ONE[None] + 0.05 * jax.random.normal(KEYS[3], (N, D, D))


def block(p, state):
    h = state["h"] @ p
    return {"h": h, "residual": jnp.abs(h - state["h"]).sum(1)}


def residual(p, state):
    return {"residual": state["residual"]}


def logits(head, state):
    return {"logits": state["h"] @ head}


STEPS = {
    "tied": deferred_readout(dx.tied_step(block, residual, ONE), logits, HEAD),
    "stacked": deferred_readout(dx.stacked_step(block, residual, MANY), logits, HEAD),
    "switched": deferred_readout(dx.switched_step(block, residual, list(MANY)), logits, HEAD),
}
BY_STATE = criteria.residual_below(2.5)
RUNS = {
    "compacted": lambda step, rule: dx.run_until(step, STATE, N, rule, "compacted", tile=2),
    "masked": lambda step, rule: dx.run_until(step, STATE, N, rule, "masked"),
    "per_row": lambda step, rule: dx.run_until(step, STATE, N, rule, "per_row"),
    "stream": lambda step, rule: dx.run_stream(step, STATE, N, rule, slots=3),
}


def close(found, wanted):
    chex.assert_trees_all_close(found, wanted, rtol=1e-5, atol=1e-5)


def inside_loops(program, *arguments):
    """Whether a product with C columns is made within the loop over depth, a `while`; reading at
    the end is a `scan` over tiles.
    """

    def search(jaxpr, looping):
        for equation in jaxpr.eqns:
            if (
                looping
                and equation.primitive.name == "dot_general"
                and equation.outvars[0].aval.shape[-1:] == (C,)
            ):
                return True
            inner = looping or equation.primitive.name == "while"
            if any(search(j, inner) for j in jaxprs_in_params(equation.params)):
                return True
        return False

    return search(jax.make_jaxpr(program)(*arguments).jaxpr, False)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("kind", STEPS)
def test_late_is_what_the_last_exit_would_have_read(kind, run):
    found, wanted = (
        RUNS[run](step, BY_STATE) for step in (STEPS[kind], read_throughout(STEPS[kind]))
    )
    assert len(set(wanted.exit_depth.tolist())) > 2 and set(found.output) == {"logits", "residual"}
    close(found, wanted)
    every = dx.run_all(STEPS[kind], STATE, N)
    close(found.output, jax.tree.map(lambda a: a[wanted.exit, jnp.arange(B)], every))


@pytest.mark.parametrize("run", RUNS)
def test_the_work_on_the_way_is_left_out_where_the_criterion_goes_without(run):
    made = lambda rule: inside_loops(lambda state: RUNS[run](STEPS["tied"], rule), STATE)
    both = lambda rule: criteria.any_of(BY_STATE, rule)
    assert not any(
        map(
            made,
            (
                BY_STATE,
                criteria.at_depth(3),
                both(criteria.at_depth(5)),
                criteria.consecutive(2, BY_STATE),
            ),
        )
    )
    assert all(
        map(
            made,
            (
                criteria.max_probability_above(0.9),
                criteria.divergence_below(0.1),
                both(criteria.patience(2)),
            ),
        )
    )


def test_a_rule_on_the_answer_finds_it_at_every_exit():
    rule = criteria.max_probability_above(jnp.float32(0.6))
    found = RUNS["compacted"](STEPS["tied"], rule)
    wanted = dx.replay(rule, dx.run_all(STEPS["tied"], STATE, N))
    assert found.exit.tolist() == wanted.exit.tolist() and len(set(found.exit.tolist())) > 1
    close(found.output, wanted.output)


def test_the_state_is_kept_for_those_who_want_it_alone():
    kept, dropped = (
        dx.run_until(STEPS["tied"], STATE, N, BY_STATE, tile=2, keep_state=keep)
        for keep in (True, False)
    )
    assert dropped.state is None
    close(dropped.output, kept.output)
    close(kept.output["logits"], kept.state["h"] @ HEAD)


def test_chunks_of_a_queue():
    chunks = [jax.tree.map(lambda a, r=r: a[r], STATE) for r in (slice(0, 4), slice(4, B))]
    found = [h.output for h in dx.stream_chunks(STEPS["tied"], chunks, N, BY_STATE, slots=2)]
    close(
        jax.tree.map(lambda *a: jnp.concatenate(a), *found),
        RUNS["stream"](STEPS["tied"], BY_STATE).output,
    )


def test_thresholds_do_not_recompile():
    traces = []

    @jax.jit
    def run(step, rule):
        traces.append(None)
        return dx.run_until(step, STATE, N, rule).exit_depth

    depths = [run(STEPS["tied"], criteria.residual_below(t)).tolist() for t in (0.5, 2.5)]
    assert len(traces) == 1 and depths[0] != depths[1]


def test_steps_made_of_it_keep_the_entries():
    several = deferred_readout(dx.tied_step(block, residual, ONE, blocks=2), logits, HEAD)
    for made in (every_iteration(several), rematerialised(STEPS["tied"])):
        assert deferred_parts(made)
        close(dx.run_all(made, STATE, N), dx.run_all(STEPS["tied"], STATE, N))
    close(
        dx.run_all(rematerialised(several), STATE, N),
        jax.tree.map(lambda a: a[1::2], dx.run_all(STEPS["tied"], STATE, N)),
    )
    model = dx.Model(lambda key: {}, lambda p, x: x, lambda p: STEPS["tied"], N, tuple("abcdef"))
    certain = best_so_far(model)
    outputs = dx.run_all(certain.steps({}), certain.embed({}, STATE), N)
    assert (jnp.diff(jax.nn.softmax(outputs["logits"]).max(-1), axis=0) > -1e-6).all(), (
        "whole outputs were compared"
    )


@pytest.mark.parametrize("rebalance", [(), (2,)])
def test_many_devices(rebalance):
    state = jax.tree.map(lambda a: jnp.concatenate([a, a[:1]]), STATE)
    mesh = jax.make_mesh((2,), ("data",))
    found = dx.run_sharded(STEPS["tied"], state, N, BY_STATE, mesh, rebalance=rebalance, tile=2)
    wanted = dx.run_until(STEPS["tied"], state, N, BY_STATE)
    close(found.output, wanted.output)
    assert found.exit_depth.tolist() == wanted.exit_depth.tolist()


def test_a_side_goes_through():
    def apply(weights, i, state, rows, side):
        state = block(weights, state)
        return state, residual(weights, state), side.at[rows].add(1)

    step = deferred_readout(dx.Step(lambda i: ONE, apply), logits, HEAD)
    halted = dx.run_until(step, STATE, N, BY_STATE, tile=2, side=jnp.zeros(B, jnp.int32))
    assert halted.side.tolist() == halted.exit_depth.tolist()
    close(halted.output["logits"], halted.state["h"] @ HEAD)


def test_a_nan_that_is_read_is_counted():
    ill = {**STATE, "h": STATE["h"].at[2].set(jnp.nan)}
    halted = dx.run_until(STEPS["tied"], ill, N, BY_STATE, tile=2)
    well = RUNS["compacted"](STEPS["tied"], BY_STATE)
    assert halted.nan_exits.tolist() == [0, 0, N, 0, 0, 0, 0] and int(halted.exit_depth[2]) == N
    others = np.array([0, 1, 3, 4, 5, 6])
    close(
        jax.tree.map(lambda a: a[others], halted.output),
        jax.tree.map(lambda a: a[others], well.output),
    )


@pytest.mark.parametrize("run", RUNS)
def test_a_nan_among_late_entries_is_counted_once(run):
    spoilt = deferred_readout(
        dx.tied_step(block, residual, ONE),
        lambda w, s: {"logits": jnp.sqrt(s["h"][:, :1] - w)},
        STATE["h"].min(),
    )
    halted = RUNS[run](spoilt, BY_STATE)
    assert halted.exit_depth.tolist() == RUNS[run](STEPS["tied"], BY_STATE).exit_depth.tolist()
    assert (
        halted.nan_exits.tolist() == jnp.isnan(halted.output["logits"][:, 0]).astype(int).tolist()
    )
    worse = deferred_readout(
        dx.tied_step(block, residual, ONE), lambda w, s: {"logits": jnp.log(s["h"][:, :1] - w)}, 1e9
    )
    assert RUNS[run](worse, BY_STATE).nan_exits.tolist() == [1] * B


def test_gradients_are_those_of_everything_read():
    weight = jax.random.normal(jax.random.key(5), (N, B, C))

    def loss(one, head, late):
        step = dx.tied_step(block, lambda p, s: residual(p, s) | logits(head, s), one)
        step = deferred_readout(dx.tied_step(block, residual, one), logits, head) if late else step
        outputs = dx.run_all(step, STATE, N)
        return (outputs["logits"] * weight).sum() + outputs["residual"].sum()

    close(
        *(
            jax.grad(functools.partial(loss, late=late), argnums=(0, 1))(ONE, HEAD)
            for late in (True, False)
        )
    )


def test_costs_and_tuning_know_the_rule(monkeypatch):
    model = dx.Model(lambda key: {}, lambda p, x: x, lambda p: STEPS["tied"], N, tuple("abcdef"))
    whole, late = costs_of(model, {}, STATE), costs_of(model, {}, STATE, BY_STATE)
    head = cost_of(logits, HEAD, STATE).flops / B
    assert whole.late == 0 and late.late == head > 0
    np.testing.assert_allclose(whole.until - late.until, head * np.arange(N), atol=1e-3)
    np.testing.assert_allclose(whole.alone, late.alone)
    assert (costs_of(model, {}, STATE, criteria.patience(1)).until == whole.until).all()
    measured = []

    def measure(stage, state, *rest):
        run = lambda s: dx.run_until(stage.step, s, N, criteria.at_depth(N))
        measured.append(inside_loops(run, state))
        return {B: 1.0}

    monkeypatch.setattr(importlib.import_module("dynexit.engine.tuning.tune"), "_measure", measure)
    for rule in (None, BY_STATE, criteria.patience(1)):
        dx.tune(STEPS["tied"], STATE, N, sizes=(B,), criterion=rule)
    dx.tune((STEPS["tied"], STEPS["tied"]), STATE, (N, N), sizes=(B,))
    assert measured == [True, False, True, True, True]


@pytest.mark.parametrize("run", ["all", *RUNS])
@pytest.mark.parametrize(
    "step, read, error, text",
    [
        (
            dx.tied_step(block, lambda p, s: s["residual"], ONE),
            logits,
            TypeError,
            "merges two dicts",
        ),
        (dx.tied_step(block, residual, ONE), lambda p, s: s["h"], TypeError, "merges two dicts"),
        (
            dx.tied_step(block, residual, ONE),
            lambda p, s: residual(p, s),
            ValueError,
            r"`read` must return entries .* got \['residual'\]",
        ),
        (
            dx.tied_step(block, residual, ONE),
            lambda p, s: {"a": s["h"][:1]},
            ValueError,
            r"output\['a'\] of shape \[1, 5\]",
        ),
    ],
)
def test_refusals(step, read, error, text, run):
    with pytest.raises(error, match=text):
        step = deferred_readout(step, read, HEAD)
        RUNS[run](step, BY_STATE) if run in RUNS else dx.run_all(step, STATE, N)


def test_what_is_late_already_is_refused_and_so_is_a_rule_that_is_none():
    with pytest.raises(ValueError, match="`step` must not have a deferred readout already"):
        deferred_readout(STEPS["tied"], lambda p, s: {"more": s["h"]}, HEAD)
    with pytest.raises(TypeError, match="or None, got str"):
        dx.tune(STEPS["tied"], STATE, N, criterion="latent")


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(
    "score",
    [
        lambda o: o.get("logits", o["residual"][:, None]).max(1) > 5,
        lambda o: jax.tree.leaves(o)[0].reshape(o["residual"].shape[0], -1).max(1) > 5,
        lambda o: (o["residual"] < 2.5) & ("logits" in o),
        lambda o: next(v for k, v in o.items() if k == "logits").min(1) > -9,
    ],
    ids=["if it is there", "the first leaf", "is it there", "looked for"],
)
def test_a_criterion_sees_the_keys_that_it_sees_in_a_replay(score, run):
    rule = dx.Criterion(
        lambda i, output, memory: (score(output), memory), lambda i, exits, memory: (exits, memory)
    )
    wanted = dx.replay(rule, dx.run_all(STEPS["tied"], STATE, N))
    found = RUNS[run](STEPS["tied"], rule)
    assert (
        found.exit_depth.tolist() == wanted.exit_depth.tolist()
        and len(set(found.exit_depth.tolist())) > 1
    )
    close(found.output, wanted.output)


def test_a_rule_may_count_on_the_exits_of_rows_in_a_stream():
    rule = dx.Criterion(
        lambda i, o, memory: (o["residual"], memory),
        lambda i, residual, memory: ((i[:, None] > 2).all(1) | (residual < 2.5), memory),
    )
    halted = RUNS["stream"](STEPS["tied"], rule)
    assert (
        halted.exit_depth.tolist()
        == jnp.minimum(RUNS["stream"](STEPS["tied"], BY_STATE).exit_depth, 4).tolist()
    )
    assert not inside_loops(lambda state: RUNS["stream"](STEPS["tied"], rule), STATE)


def test_an_output_of_late_entries_alone_is_read_at_every_exit():
    step = deferred_readout(dx.tied_step(block, lambda p, s: {}, ONE), logits, HEAD)
    halted = RUNS["compacted"](step, criteria.max_probability_above(0.6))
    assert (
        halted.exit.tolist()
        == RUNS["compacted"](STEPS["tied"], criteria.max_probability_above(0.6)).exit.tolist()
    )


def test_blocks_are_dropped_beneath_late_entries():
    kept, ones = jnp.array([True, False, True, True, False, True]), jnp.ones(N)
    dropped, plain = (
        dropped_blocks(s, kept, ones)
        for s in (STEPS["stacked"], dx.stacked_step(block, residual, MANY))
    )
    assert deferred_parts(dropped)
    found = dx.run_all(dropped, STATE, N)
    close(found["residual"], dx.run_all(plain, STATE, N)["residual"])
    close(found["logits"][-1], dx.run_full(dropped, STATE, N)[0]["h"] @ HEAD)


def test_leaves_and_programs_are_the_same_from_call_to_call():
    make = {"again": lambda s: s, "every": every_iteration, "remat": rematerialised}
    several = lambda one: deferred_readout(
        dx.tied_step(block, residual, one, blocks=2), logits, HEAD
    )
    for name, f in make.items():
        first, second = f(several(ONE)), f(several(2 * ONE))
        assert jax.tree.structure(first) == jax.tree.structure(second), name
        assert sorted(a.shape for a in jax.tree.leaves(first)) == [(D, D), (D, C)], name


@pytest.mark.compiled
def test_rematerialised_heads_keep_no_inner_values():
    wide = jax.random.normal(KEYS[0], (D, 4000))

    def temporaries(make):
        step = lambda w: make(
            deferred_readout(
                dx.tied_step(block, residual, ONE),
                lambda w, s: {"a": jnp.tanh(s["h"] @ w).sum(1)},
                w,
            )
        )
        loss = lambda w: dx.run_all(step(w), STATE, N)["a"].sum()
        return jax.jit(jax.grad(loss)).lower(wide).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(rematerialised) < 0.6 * temporaries(lambda step: step)


def test_late_entries_are_read_a_tile_at_a_time():
    many = jax.tree.map(lambda a: jnp.tile(a, (30,) + (1,) * (a.ndim - 1)), STATE)
    widest = []

    def read(w, state):
        widest.append(state["h"].shape[0])
        return logits(w, state)

    halted = dx.run_stream(
        deferred_readout(dx.tied_step(block, residual, ONE), read, HEAD), many, N, BY_STATE, slots=8
    )
    assert set(widest[-2:]) == {8, 210 % 8}
    close(halted.output["logits"], halted.state["h"] @ HEAD)


def test_a_faulty_criterion_is_told_of_the_whole_output():
    with pytest.raises(ValueError, match=r"has the keys \['logits', 'residual'\]"):
        RUNS["compacted"](STEPS["tied"], criteria.gate_above(0.5))
    with pytest.raises(ValueError, match="thresholds of shape"):
        RUNS["compacted"](STEPS["tied"], criteria.residual_below([0.1, 0.2]))
