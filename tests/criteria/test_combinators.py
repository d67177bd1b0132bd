"""Combined criteria against verdicts combined by hand; decaying thresholds as published."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit import criteria

E, B, C = 6, 9, 3


def stored(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    growth = jnp.linspace(0.3, 3.0, E)[:, None, None]
    logits = jax.random.normal(keys[0], (1, B, C)) * growth + jax.random.normal(keys[1], (E, B, C))
    return {"logits": logits, "gate": jax.random.uniform(keys[2], (E, B))}


def verdicts(criterion, outputs):
    """What the criterion says of every row at every exit, `[E, B]`, had nobody left."""
    one = jax.tree.map(lambda a: a[0], outputs)
    memory, found = criterion.init(B, jax.eval_shape(lambda o: o, one)), []
    for e in range(E):
        halt, memory = criterion.update(
            jnp.int32(e), jax.tree.map(lambda a, e=e: a[e], outputs), memory
        )
        found.append(np.asarray(halt))
    return np.stack(found)


MEMBERS = [
    criteria.max_probability_above(0.8),
    criteria.patience(2),
    criteria.gate_above(jnp.linspace(0.9, 0.5, E - 1)),
    criteria.divergence_below(0.2),
]


@pytest.mark.parametrize("members", [MEMBERS[:2], MEMBERS[1:3], MEMBERS])
def test_any_and_all_combine_the_verdicts(members):
    outputs = stored()
    alone = np.stack([verdicts(c, outputs) for c in members])
    assert (alone.any(0) != alone.all(0)).any()
    np.testing.assert_array_equal(verdicts(dx.criteria.any_of(*members), outputs), alone.any(0))
    np.testing.assert_array_equal(verdicts(dx.criteria.all_of(*members), outputs), alone.all(0))


def test_combinations_nest():
    outputs = stored()
    a, b, c, _ = (verdicts(m, outputs) for m in MEMBERS)
    rule = criteria.all_of(criteria.any_of(*MEMBERS[:2]), criteria.not_before(3, MEMBERS[2]))
    late = np.arange(E)[:, None] >= 2
    np.testing.assert_array_equal(verdicts(rule, outputs), (a | b) & c & late)
    assert rule.exits == E


@pytest.mark.parametrize("depth", [1, 3, E, 50])
def test_not_before(depth):
    outputs = stored()
    inner = verdicts(criteria.patience(1), outputs)
    fires = inner & (np.arange(E)[:, None] + 1 >= depth)
    np.testing.assert_array_equal(
        verdicts(criteria.not_before(depth, criteria.patience(1)), outputs), fires
    )
    exits = dx.replay(criteria.not_before(depth, criteria.patience(1)), outputs).exit
    assert exits.min() >= min(depth, E) - 1


def test_memory_is_kept_before_rows_may_leave():
    logits = jnp.tile(jnp.array([2.0, 0.0, 0.0]), (E, B, 1))
    halted = dx.replay(criteria.not_before(3, criteria.patience(2)), logits)
    np.testing.assert_array_equal(
        halted.exit_depth, np.full(B, 3)
    )  # and not 5, had it begun to count at 3
    np.testing.assert_array_equal(halted.memory.decide, np.full(B, 2))


def test_depths_and_members_are_leaves():
    a, b = (
        criteria.not_before(d, criteria.any_of(criteria.patience(k), MEMBERS[0]))
        for d, k in ((1, 2), (4, 3))
    )
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert [int(x) for x in jax.tree.leaves(b) if jnp.issubdtype(x.dtype, jnp.integer)].count(
        4
    ) >= 1


def test_memories_have_the_shapes_of_the_output():
    shapes = {
        "logits": jax.ShapeDtypeStruct((B, C), jnp.bfloat16),
        "gate": jax.ShapeDtypeStruct((B,), jnp.float32),
    }
    assert criteria.gate_above(0.5).init(B, shapes) == ((), ())
    memory = criteria.all_of(*MEMBERS).init(B, shapes)
    assert [len(jax.tree.leaves(m)) for m in memory.score] == [0, 1, 0, 1]
    assert [len(jax.tree.leaves(m)) for m in memory.decide] == [0, 1, 0, 0]
    assert memory.score[3].shape == (B, C) and memory.score[3].dtype == jnp.float32


@pytest.mark.parametrize("combine", [criteria.any_of, criteria.all_of])
def test_combinators_refuse(combine):
    with pytest.raises(ValueError, match="`criteria` must hold at least one criterion, got none"):
        combine()
    with pytest.raises(TypeError, match=r"`criteria\[1\]` must be a dx.Criterion, got float"):
        combine(MEMBERS[0], 0.5)
    with pytest.raises(
        ValueError, match=r"`criteria` must be meant for one number of exits, got \[3, 5\]"
    ):
        combine(
            criteria.gate_above(jnp.zeros(4)),
            criteria.gate_above(0.5),
            criteria.gate_above(jnp.zeros(2)),
        )


@pytest.mark.parametrize(
    "make, error, words",
    [
        (
            lambda: criteria.not_before(0, MEMBERS[0]),
            ValueError,
            "`depth` must be at least 1, got 0",
        ),
        (
            lambda: criteria.not_before(1.5, MEMBERS[0]),
            TypeError,
            "`depth` must be an integer, got float64",
        ),
        (
            lambda: criteria.not_before(jnp.array([1, 2]), MEMBERS[0]),
            ValueError,
            r"`depth` must be a scalar, got shape \(2,\)",
        ),
        (
            lambda: criteria.not_before(1, None),
            TypeError,
            "`criterion` must be a dx.Criterion, got NoneType",
        ),
        (
            lambda: criteria.decaying(criteria.gate_above, 0.5, steps=0),
            ValueError,
            "`steps` must be at least 1, got 0",
        ),
    ],
)
def test_other_arguments_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    "decay, expected",
    [
        (criteria.scaled_decay, [0.5, 0.497, 0.4684, 0.4568, 0.451]),
        (criteria.clipped_decay, [0.55, 0.5439, 0.4868, 0.4635, 0.4519]),
    ],
)
def test_decay_as_published(decay, expected):
    times = jnp.array([0, 1, 16, 32, 63])
    np.testing.assert_allclose(decay(0.5, times, 64, 4.0), expected, atol=6e-5)


def test_clipped_decay_stays_in_its_range():
    np.testing.assert_array_equal(
        criteria.clipped_decay(jnp.array([1.1, -0.5]), 0, 8, 4.0), [1.0, 0.0]
    )


def test_decaying_over_exits_is_a_threshold_an_exit():
    outputs = stored()
    falling = jnp.array(
        [0.9 * (0.9 + 0.1 * np.exp(-40.0 * e / E)) for e in range(E - 1)], jnp.float32
    )
    rule = criteria.decaying(criteria.max_probability_above, 0.9, steps=E, tau=40.0)
    assert rule.exits == E
    np.testing.assert_array_equal(
        verdicts(rule, outputs), verdicts(criteria.max_probability_above(falling), outputs)
    )
    assert (verdicts(rule, outputs) != verdicts(criteria.max_probability_above(0.9), outputs)).any()


def test_decaying_over_a_time_of_the_caller_is_traced():
    outputs, traces = stored(), []

    @jax.jit
    def depths(position):
        traces.append(None)
        rule = criteria.decaying(
            criteria.max_probability_above,
            0.95,
            steps=64,
            time=position,
            decay=criteria.clipped_decay,
        )
        return dx.replay(rule, outputs).exit

    for position in (0, 5, 63):
        threshold = 0.9 * 0.95 + 0.1 * np.exp(-4.0 * position / 64)
        expected = dx.replay(criteria.max_probability_above(threshold), outputs).exit
        np.testing.assert_array_equal(depths(jnp.int32(position)), expected)
    assert len(traces) == 1
    assert depths(jnp.int32(0)).sum() > depths(jnp.int32(63)).sum()
