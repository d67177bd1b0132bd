"""The battery that every criterion passes: shapes, strictness, thresholds as leaves, rows apart."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit import criteria

pytestmark = pytest.mark.typed

E, B, C, D = 5, 8, 4, 6


class Case(NamedTuple):
    """A rule and three settings of it, from leaving early to leaving late.

    Attributes:
      make: `make(setting) -> Criterion`.
      settings: of rising strictness; the middle one parts the rows.
      per_exit: whether a setting may be `[E-1]`.
      reads: the key of the output that it reads.
    """

    make: Callable[[Any], dx.Criterion]
    settings: tuple[Any, Any, Any]
    per_exit: bool = True
    reads: str = "logits"


CASES = {
    "max_probability": Case(criteria.max_probability_above, (0.4, 0.7, 0.95)),
    "temperature": Case(
        lambda t: criteria.max_probability_above(0.6, temperature=t),
        (0.5, 1.0, 4.0),
        per_exit=False,
    ),
    "entropy": Case(criteria.entropy_below, (1.2, 0.8, 0.2)),
    "margin": Case(criteria.margin_above, (0.1, 0.5, 0.9)),
    "energy": Case(criteria.energy_below, (-1.5, -2.5, -4.0)),
    "patience": Case(criteria.patience, (1, 2, 3), per_exit=False),
    "gate": Case(criteria.gate_above, (0.2, 0.6, 0.9), reads="gate"),
    "q_exit": Case(criteria.cumulative_halting_above, (0.3, 0.6, 0.9), reads="halt_logit"),
    "halting_sum": Case(criteria.halting_sum_above, (0.4, 0.8, 1.5), reads="halt_logit"),
    "divergence": Case(criteria.divergence_below, (1.0, 0.2, 0.02)),
    "saturation": Case(criteria.saturation_above, (0.0, 0.5, 0.9), reads="hidden"),
    "change": Case(criteria.change_below, (1.5, 0.9, 0.5), reads="hidden"),
    "residual": Case(criteria.residual_below, (0.8, 0.3, 0.1), reads="residual"),
    "any_of": Case(
        lambda t: criteria.any_of(criteria.margin_above(t), criteria.patience(3)),
        (0.1, 0.5, 0.9),
        per_exit=False,
    ),
    "all_of": Case(
        lambda t: criteria.all_of(criteria.margin_above(t), criteria.divergence_below(0.5)),
        (0.1, 0.3, 0.9),
        per_exit=False,
    ),
    "not_before": Case(
        lambda d: criteria.not_before(d, criteria.margin_above(0.4)), (1, 2, 4), per_exit=False
    ),
    "consecutive": Case(
        lambda k: criteria.consecutive(k, criteria.margin_above(0.3)), (1, 2, 3), per_exit=False
    ),
    "decaying": Case(
        lambda t: criteria.decaying(criteria.margin_above, t, steps=E),
        (0.1, 0.5, 0.9),
        per_exit=False,
    ),
    "halting_sampled": Case(  # what is drawn belongs to places in the batch
        lambda d: criteria.not_before(d, criteria.halting_sampled(jax.random.key(3))),
        (1, 2, 4),
        per_exit=False,
        reads="",
    ),
    "at_depth": Case(
        lambda d: criteria.at_depth(jnp.minimum(jnp.arange(1, B + 1) % 4 + d, E)),
        (1, 2, 3),
        per_exit=False,
        reads="",
    ),
}


def cases(wanted):
    chosen = {name: case for name, case in CASES.items() if wanted(case)}
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen.keys())


every_case = cases(lambda case: True)
every_reading_case = cases(
    lambda case: case.reads
)  # depths given beforehand belong to places in the batch
every_case_with_thresholds = cases(lambda case: case.per_exit)


def stored(seed=0):
    """Outputs `[E, B, ...]`; rows differ in how sure they are and how quickly they settle."""
    keys = [*jax.random.split(jax.random.key(seed), 4), jax.random.key(seed + 1)]
    sure = jnp.linspace(0.2, 1.5, B)[None, :, None] * jnp.linspace(0.5, 3.0, E)[:, None, None]
    return {
        "logits": jax.random.normal(keys[0], (1, B, C)) * sure
        + 0.4 * jax.random.normal(keys[1], (E, B, C)),
        "gate": jax.random.uniform(keys[2], (E, B)),
        "halt_logit": jax.random.normal(keys[3], (E, B)) - 0.7,
        "hidden": jnp.cumsum(jax.random.normal(keys[1], (E, B, D)), axis=0),
        "residual": jax.random.uniform(keys[4], (E, B)),
    }


def at_exit(outputs, e):
    return jax.tree.map(lambda a: a[e], outputs)


def begin(criterion, outputs):
    return criterion.init(B, jax.eval_shape(at_exit, outputs, 0))


def walk(criterion, outputs, index=jnp.int32):
    """Verdicts `[E, B]` and the memory at the end; `index` makes an exit's index out of a number."""
    memory, found = begin(criterion, outputs), []
    for e in range(E):
        halt, memory = criterion.update(index(e), at_exit(outputs, e), memory)
        found.append(halt)
    return np.asarray(jnp.stack(found)), memory


def assert_trees_equal(a, b):
    chex.assert_trees_all_close(a, b, rtol=1e-6, atol=1e-6)


@every_case
def test_verdicts_are_bool_a_row_and_the_memory_keeps_its_shape(case):
    outputs, criterion = stored(), case.make(case.settings[1])
    memory = begin(criterion, outputs)
    shapes = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert all(leaf.shape[0] == B for leaf in jax.tree.leaves(memory))
    halt, new = criterion.update(jnp.int32(1), at_exit(outputs, 1), memory)
    assert halt.shape == (B,) and halt.dtype == jnp.bool_
    assert shapes(new) == shapes(memory)


@every_case
def test_the_middle_setting_parts_the_rows_and_strictness_never_hastens(case):
    exits = [np.asarray(dx.replay(case.make(s), stored()).exit) for s in case.settings]
    assert len(set(exits[1].tolist())) > 1
    assert (exits[0] <= exits[1]).all() and (exits[1] <= exits[2]).all()
    assert exits[0].sum() < exits[2].sum()


@every_case
def test_two_settings_are_one_program(case):
    outputs, traces = stored(), []

    @jax.jit
    def exits(criterion):
        traces.append(None)
        return dx.replay(criterion, outputs).exit

    for setting in case.settings:
        np.testing.assert_array_equal(
            exits(case.make(setting)), dx.replay(case.make(setting), outputs).exit
        )
    assert len(traces) == 1
    structures = {jax.tree.structure(case.make(setting)) for setting in case.settings}
    assert len(structures) == 1 and hash(structures.pop()) is not None
    leaves = zip(
        *(jax.tree.leaves(case.make(setting)) for setting in (case.settings[0], case.settings[2])),
        strict=True,
    )
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in leaves), (
        "the setting must be a leaf"
    )


@every_case
def test_decisions_on_stored_scores_are_the_exits_of_stored_outputs(case):
    """At many settings at once; a NaN keeps its row as in a run."""
    outputs = jax.tree.map(lambda a: a.at[1, 3].set(jnp.nan), stored())
    scores, nan, memory = [], [], begin(case.make(case.settings[1]), outputs).score
    for e in range(E):
        score, memory = case.make(case.settings[1]).score(jnp.int32(e), at_exit(outputs, e), memory)
        scores.append(score)
        nan.append(jnp.arange(B) == (3 if e == 1 else -1))
    assert all(a.shape[0] == B and a.size <= 4 * B for a in jax.tree.leaves(scores[0]))
    scores, nan = jax.tree.map(lambda *a: jnp.stack(a), *scores), jnp.stack(nan)
    if case.make is CASES["temperature"].make:  # temperatures belong to the score
        settings = jnp.array([case.settings[1]])
    else:
        settings = jnp.tile(jnp.array(case.settings), 5)
    found = dx.replay_scores(case.make, settings, scores, nan)
    assert found.shape == (len(settings), B) and found.dtype == jnp.int32
    for k, setting in enumerate(settings[:3]):
        np.testing.assert_array_equal(found[k], dx.replay(case.make(setting), outputs).exit)


@every_case
def test_settings_may_be_swept_by_vmap(case):
    outputs, settings = stored(), jnp.array(case.settings)
    swept = jax.vmap(lambda s: dx.replay(case.make(s), outputs).exit)(settings)
    for k, setting in enumerate(case.settings):
        np.testing.assert_array_equal(swept[k], dx.replay(case.make(setting), outputs).exit)


@every_reading_case
def test_slots_may_be_at_exits_of_their_own(case):
    outputs, criterion = stored(), case.make(case.settings[1])
    fires, memory = walk(criterion, outputs)
    apart, memory_apart = walk(criterion, outputs, lambda e: jnp.full(B, e, jnp.int32))
    np.testing.assert_array_equal(fires, apart)
    assert_trees_equal(memory, memory_apart)
    # Half the rows one exit behind the others: each gets the verdict of its own exit.
    memory = begin(criterion, outputs)
    behind = jnp.arange(B) % 2
    for e in range(E):
        index = jnp.maximum(e - behind, 0)
        output = jax.tree.map(lambda a, index=index: a[index, jnp.arange(B)], outputs)
        halt, new = criterion.update(index, output, memory)
        waits = (behind == 1) & (e == 0)
        memory = jax.tree.map(
            lambda n, m, waits=waits: jnp.where(waits.reshape((B,) + (1,) * (n.ndim - 1)), m, n),
            new,
            memory,
        )
        running = ~np.asarray(waits)
        np.testing.assert_array_equal(
            np.asarray(halt)[running], fires[np.asarray(index), np.arange(B)][running]
        )


@every_reading_case
def test_a_nan_never_leaves_and_disturbs_no_other_row(case):
    outputs, criterion = stored(), case.make(case.settings[0])
    fires, _ = walk(criterion, outputs)
    broken = jax.tree.map(lambda a: a.at[:, 2].set(jnp.nan), outputs)
    found, _ = walk(criterion, broken)
    assert fires[:, 2].any() and not found[:, 2].any()
    others = np.arange(B) != 2
    np.testing.assert_array_equal(found[:, others], fires[:, others])


@every_reading_case
def test_rows_are_apart(case):
    outputs, criterion = stored(), case.make(case.settings[1])
    order = np.random.default_rng(0).permutation(B)
    fires, memory = walk(criterion, outputs)
    permuted, memory_permuted = walk(criterion, jax.tree.map(lambda a: a[:, order], outputs))
    np.testing.assert_array_equal(permuted, fires[:, order])
    assert_trees_equal(memory_permuted, jax.tree.map(lambda a: a[order], memory))


@every_case
def test_half_precision_outputs_meet_float32_thresholds(case):
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), stored())
    whole = jax.tree.map(lambda a: a.astype(jnp.float32), half)
    criterion = case.make(case.settings[1])
    fires, memory = walk(criterion, half)
    expected, expected_memory = walk(criterion, whole)
    np.testing.assert_array_equal(fires, expected)
    assert_trees_equal(memory, expected_memory)


@every_case_with_thresholds
def test_a_threshold_an_exit(case):
    outputs, setting = stored(), case.settings[1]
    criterion = case.make(jnp.full(E - 1, setting))
    assert criterion.exits == E and case.make(setting).exits is None
    exits = dx.replay(case.make(setting), outputs).exit
    np.testing.assert_array_equal(dx.replay(criterion, outputs).exit, exits)
    # Only exit 2 has the lenient threshold; all the others wait for ever.
    never = (
        -jnp.inf
        if case.settings[0] > case.settings[2]
        else (1.0 if case.make is criteria.cumulative_halting_above else jnp.inf)
    )
    alone = case.make(jnp.full(E - 1, never).at[2].set(setting))
    fires, _ = walk(case.make(setting), outputs)
    np.testing.assert_array_equal(dx.replay(alone, outputs).exit, np.where(fires[2], 2, E - 1))
    with pytest.raises(
        ValueError,
        match=rf"thresholds of shape \[{E}\], but the run has {E} exits and wants \[{E - 1}\]",
    ):
        dx.replay(case.make(jnp.full(E, setting)), outputs)


def test_every_rule_of_the_namespace_is_in_the_battery():
    decays = {"scaled_decay", "clipped_decay", "scores"}  # no criteria
    names = {n.removesuffix("_above").removesuffix("_below") for n in criteria.__all__} - decays
    tried = set(CASES) - {"temperature", "q_exit"} | {"cumulative_halting"}
    assert names == tried


@cases(lambda case: case.reads)  # `at_depth` with a depth a row is for its own number of rows
def test_any_number_of_rows(case):
    """As `dx.export` traces it."""
    step = dx.Step(
        lambda i: (),
        lambda w, i, h: (
            h,
            {"logits": h, "hidden": h, "gate": h[:, 0], "halt_logit": h[:, 0], "residual": h[:, 0]},
        ),
    )
    state = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b"), C), jnp.float32)
    halted = jax.eval_shape(
        lambda state: dx.run_until(step, state, E, case.make(case.settings[1])), state
    )
    assert halted.exit.shape == state.shape[:1]
