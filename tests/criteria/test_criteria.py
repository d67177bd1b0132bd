"""Each exit rule against published figures and Python loops over stored outputs; what is refused,
and in which words.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit import criteria
from dynexit.criteria import scores

E, B, C = 6, 7, 4


def stored(seed=0):
    """Outputs `[E, B, ...]` whose rows become sure at different exits."""
    keys = jax.random.split(jax.random.key(seed), 4)
    growth = jnp.linspace(0.3, 4.0, E)[:, None, None]
    return {
        "logits": jax.random.normal(keys[0], (1, B, C)) * growth
        + jax.random.normal(keys[1], (E, B, C)) * 0.5,
        "gate": jax.random.uniform(keys[2], (E, B)),
        "halt_logit": jax.random.normal(keys[3], (E, B)) - 1.0,
        "hidden": jnp.cumsum(jax.random.normal(keys[1], (E, B, 5)), axis=0),
    }


def first(fires):
    """Exits taken, from verdicts `[E, B]`; the last exit takes everyone."""
    fires = np.array(fires)
    fires[-1] = True
    return fires.argmax(axis=0)


def assert_exits(criterion, outputs, fires):
    expected = first(fires)
    assert len(set(expected.tolist())) > 1, "a batch whose rows leave together shows nothing"
    np.testing.assert_array_equal(dx.replay(criterion, outputs).exit, expected)


@pytest.mark.parametrize("t", [0.5, [0.9, 0.4, 0.7, 0.6, 0.5]])
@pytest.mark.parametrize("temperature", [1.0, [2.0, 1.0, 0.5, 1.0, 1.0, 1.0]])
@pytest.mark.parametrize(
    "make, score, sign, scale",
    [
        (criteria.max_probability_above, scores.max_probability, 1, 1),
        (criteria.margin_above, scores.margin, 1, 1),
        (criteria.entropy_below, scores.entropy, -1, 1),
        (criteria.energy_below, scores.energy, -1, -5),
    ],
)
def test_rules_on_logits(make, score, sign, scale, t, temperature):
    outputs, t = stored(), np.float32(t) * np.float32(scale)
    values = np.array(
        score(outputs["logits"], np.broadcast_to(np.float32(temperature).reshape(-1, 1), (E, B)))
    )
    thresholds, fires = np.broadcast_to(t, E - 1), np.zeros((E, B), bool)
    for e in range(E - 1):
        for b in range(B):
            fires[e, b] = values[e, b] > thresholds[e] if sign > 0 else values[e, b] < thresholds[e]
    assert_exits(make(t, temperature), outputs, fires)
    assert_exits(make(t, temperature), outputs["logits"], fires)


@pytest.mark.parametrize("n, layer", [(3, 7), (2, 3), (1, 2)])
def test_patience_as_published(n, layer):
    predictions = [[0, 0, 0, 1, 1, 1, 1], [0, 1, 0, 1, 0, 1, 0]]
    outputs = jax.nn.one_hot(jnp.array(predictions).T, 3)
    halted = dx.replay(criteria.patience(n), outputs)
    np.testing.assert_array_equal(halted.exit_depth, [layer, 7])
    np.testing.assert_array_equal(halted.memory.decide, [n, 0])


def test_patience_counts_from_nothing_after_a_nan():
    logits = jnp.tile(jnp.array([3.0, 0.0]), (6, 2, 1)).at[1:3, 0].set(jnp.nan)
    halted = dx.replay(criteria.patience(2), logits)
    np.testing.assert_array_equal(halted.exit, [5, 2])  # row 0 agrees at exits 4 and 5 only


def test_gate():
    outputs = stored()
    assert_exits(criteria.gate_above(0.6), outputs, outputs["gate"] > 0.6)


@pytest.mark.parametrize("q, step", [(0.5, 2), (0.59, 2), (0.61, 3), (0.1, 1), (0.9, 4), (1.0, 4)])
def test_q_exit_as_published(q, step):
    halting = jnp.array([0.2, 0.5, 0.5, 1.0])
    outputs = {"halt_logit": jax.scipy.special.logit(halting)[:, None]}
    assert int(dx.replay(criteria.cumulative_halting_above(q), outputs).exit_depth[0]) == step


def test_q_exit_is_the_product_rule():
    outputs = stored()
    survival, fires = np.ones(B), []
    for logit in np.asarray(outputs["halt_logit"], np.float64):
        survival = survival * (1 - 1 / (1 + np.exp(-logit)))
        fires.append(1 - survival > 0.6)
    assert_exits(criteria.cumulative_halting_above(0.6), outputs, fires)


def test_q_exit_does_not_underflow():
    steps = 200
    outputs = {"halt_logit": jnp.stack([jnp.full(steps, 3.0), jnp.full(steps, -20.0)], axis=1)}
    halted = dx.replay(criteria.cumulative_halting_above(1.0), outputs)
    np.testing.assert_allclose(
        halted.memory.score[0], -steps * math.log1p(math.exp(3.0)), rtol=1e-5
    )
    np.testing.assert_allclose(halted.memory.score[1], -steps * math.exp(-20.0), rtol=1e-4)


@pytest.mark.parametrize(
    "halting, step", [((0.3, 0.4, 0.5, 0.5), 3), ((0.269,) * 6, 4), ((0.9, 0.05, 0.03, 0.9), 4)]
)
def test_halting_sum_as_published(halting, step):
    outputs = {"halt_logit": jax.scipy.special.logit(jnp.array(halting))[:, None]}
    assert int(dx.replay(criteria.halting_sum_above(), outputs).exit_depth[0]) == step
    # The product rule passes 0.99 later than the sum: the two rules are not one.
    assert int(dx.replay(criteria.cumulative_halting_above(0.99), outputs).exit_depth[0]) == len(
        halting
    )


def test_divergence_looks_from_the_exit_before_to_this_one():
    outputs, temperature = stored(), np.linspace(2.0, 0.5, E)
    fires, reverse = np.zeros((E, B), bool), np.zeros((E, B), bool)
    p = [jax.nn.softmax(outputs["logits"][e] / temperature[e]) for e in range(E)]
    for e in range(1, E):
        for b in range(B):
            old, new = np.asarray(p[e - 1][b], np.float64), np.asarray(p[e][b], np.float64)
            fires[e, b] = (old * np.log(old / new)).sum() < 0.15
            reverse[e, b] = (new * np.log(new / old)).sum() < 0.15
    assert (first(fires) != first(reverse)).any(), "the case must tell the two directions apart"
    assert_exits(
        criteria.divergence_below(0.15, jnp.array(temperature, jnp.float32)), outputs, fires
    )


def test_saturation_is_the_cosine_with_the_exit_before():
    outputs = stored()
    fires = np.zeros((E, B), bool)
    for e in range(1, E):
        for b in range(B):
            u, v = (np.asarray(outputs["hidden"][k, b], np.float64) for k in (e - 1, e))
            fires[e, b] = u @ v / math.sqrt((u @ u) * (v @ v)) > 0.8
    assert_exits(criteria.saturation_above(0.8), outputs, fires)


def test_saturation_takes_tokens_as_one_vector_and_zeros_as_no_direction():
    hidden = jax.random.normal(jax.random.key(3), (E, B, 3, 4)).at[:3, 0].set(0.0)
    halted = dx.replay(criteria.saturation_above(-0.1), {"hidden": hidden})
    flat = dx.replay(criteria.saturation_above(-0.1), {"hidden": hidden.reshape(E, B, 12)})
    np.testing.assert_array_equal(halted.exit, flat.exit)
    assert halted.memory.score.shape == (B, 3, 4)
    assert int(halted.exit[0]) == 1  # cosine 0 of zeros is above -0.1
    assert int(dx.replay(criteria.saturation_above(0.0), {"hidden": hidden}).exit[0]) > 2


@pytest.mark.parametrize("make", [criteria.divergence_below, criteria.saturation_above])
def test_the_first_exit_has_nothing_to_compare_with(make):
    outputs = jax.tree.map(lambda a: jnp.ones_like(a), stored())
    always = jnp.inf if make is criteria.divergence_below else -2.0
    np.testing.assert_array_equal(dx.replay(make(always), outputs).exit, np.ones(B))


def test_depths_are_kept_row_by_row_and_beyond_the_last_means_the_last():
    outputs = stored()
    depths = jnp.array([3, 1, 6, 2, 99, 4, 5])
    np.testing.assert_array_equal(
        dx.replay(criteria.at_depth(depths), outputs).exit_depth, [3, 1, 6, 2, 6, 4, 5]
    )
    np.testing.assert_array_equal(
        dx.replay(criteria.at_depth(2), outputs).exit_depth, np.full(B, 2)
    )


def test_read_says_where_to_look():
    outputs = stored()
    nested = {"a": {"z": outputs["logits"]}, "gates": outputs["gate"]}
    np.testing.assert_array_equal(
        dx.replay(criteria.margin_above(0.4, read=lambda o: o["a"]["z"]), nested).exit,
        dx.replay(criteria.margin_above(0.4), outputs).exit,
    )
    np.testing.assert_array_equal(
        dx.replay(criteria.divergence_below(0.1, read=lambda o: o["a"]["z"]), nested).exit,
        dx.replay(criteria.divergence_below(0.1), outputs).exit,
    )
    np.testing.assert_array_equal(
        dx.replay(criteria.gate_above(0.4, read=lambda o: o["gates"]), nested).exit,
        dx.replay(criteria.gate_above(0.4), outputs).exit,
    )


def test_one_exit_has_no_thresholds():
    outputs = stored()["logits"][:1]
    for make in (criteria.max_probability_above, criteria.entropy_below):
        criterion = make(jnp.zeros(0))
        assert criterion.exits == 1
        np.testing.assert_array_equal(dx.replay(criterion, outputs).exit, np.zeros(B))


THRESHOLDS = [
    criteria.max_probability_above,
    criteria.entropy_below,
    criteria.margin_above,
    criteria.energy_below,
    criteria.gate_above,
    criteria.halting_sum_above,
    criteria.divergence_below,
    criteria.saturation_above,
]


@pytest.mark.parametrize("make", THRESHOLDS)
def test_wrong_thresholds_are_refused(make):
    with pytest.raises(
        ValueError, match=r"`threshold` must be a scalar or have shape \[E-1\], got shape \(2, 3\)"
    ):
        make(jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"`threshold` must not hold a NaN, got \[0.5, nan\]"):
        make(jnp.array([0.5, jnp.nan]))
    assert make(jnp.zeros(4)).exits == 5
    assert make(0.5).exits is None


def test_traced_thresholds_are_not_looked_into():
    outputs = stored()["logits"]
    exits = jax.jit(lambda t: dx.replay(criteria.max_probability_above(t), outputs).exit)
    np.testing.assert_array_equal(exits(jnp.nan), np.full(B, E - 1))


@pytest.mark.parametrize("make", [*THRESHOLDS[:4], criteria.divergence_below])
def test_wrong_temperatures_are_refused(make):
    with pytest.raises(ValueError, match=r"`temperature` must be above 0, got \[1.0, 0.0\]"):
        make(0.5, jnp.array([1.0, 0.0]))
    with pytest.raises(
        ValueError, match=r"`temperature` must be a scalar or have shape \[E\], got shape \(1, 1\)"
    ):
        make(0.5, jnp.ones((1, 1)))
    with pytest.raises(
        ValueError,
        match=r"`temperature` has shape \(5,\), for 5 exits, and `threshold` has shape \(3,\), for 4",
    ):
        make(jnp.zeros(3), jnp.ones(5))
    assert make(0.5, jnp.ones(5)).exits == 5


@pytest.mark.parametrize(
    "make, error, words",
    [
        (
            lambda: criteria.cumulative_halting_above(1.5),
            ValueError,
            r"`q` must lie in 0..1, got 1.5",
        ),
        (
            lambda: criteria.cumulative_halting_above(jnp.zeros((1, 1))),
            ValueError,
            r"`q` must be a scalar or have shape \[E-1\]",
        ),
        (lambda: criteria.patience(0), ValueError, "`k` must be at least 1, got 0"),
        (lambda: criteria.patience(2.0), TypeError, "`k` must be an integer, got float"),
        (
            lambda: criteria.patience(jnp.array([1, 2])),
            ValueError,
            r"`k` must be a scalar, got shape \(2,\)",
        ),
        (
            lambda: criteria.at_depth(jnp.array([1, 0])),
            ValueError,
            "`depths` must be at least 1, got 0",
        ),
        (
            lambda: criteria.at_depth(jnp.array([1.0])),
            TypeError,
            "`depths` must be an integer, got float32",
        ),
        (
            lambda: criteria.at_depth(jnp.ones((2, 2), int)),
            ValueError,
            r"`depths` must be a scalar or have shape \[B\]",
        ),
    ],
)
def test_other_arguments_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    "criterion, outputs, words",
    [
        (
            criteria.gate_above(0.5),
            jnp.zeros((2, B, C)),
            r"reads output\['gate'\], and the output is a bare array, the logits; `read`",
        ),
        (
            criteria.gate_above(0.5),
            {"logits": jnp.zeros((2, B, C))},
            r"reads output\['gate'\], and the output has the keys \['logits'\]",
        ),
        (
            criteria.margin_above(0.5),
            {"z": jnp.zeros((2, B, C))},
            r"reads output\['logits'\], and the output has the keys \['z'\]",
        ),
        (
            criteria.saturation_above(0.5),
            jnp.zeros((2, B, C)),
            r"reads output\['hidden'\], and the output is a bare array",
        ),
        (
            criteria.margin_above(0.5),
            (jnp.zeros((2, B, C)),),
            r"reads output\['logits'\], and the output is a tuple",
        ),
        (
            criteria.margin_above(0.5),
            jnp.zeros((2, B)),
            r"reads logits of shape \[b, C\] or \[b, ..., C\], got shape \(7,\)",
        ),
        (
            criteria.gate_above(0.5),
            {"gate": jnp.zeros((2, B, 1))},
            r"reads output\['gate'\] of shape \[b\], got shape \(7, 1\)",
        ),
    ],
)
def test_outputs_that_do_not_fit_are_refused(criterion, outputs, words):
    with pytest.raises(ValueError, match=words):
        dx.replay(criterion, outputs)


PLACED = (
    jax.random.normal(jax.random.key(5), (6, B, 3, C))
    * jnp.linspace(0.5, 4.0, 6)[:, None, None, None]
)


@pytest.mark.parametrize(
    "make",
    [
        lambda t: criteria.max_probability_above(0.5 * t),
        lambda t: criteria.entropy_below(1.2 / t, temperature=jnp.linspace(0.5, 1.5, 6)),
        lambda t: criteria.energy_below(-1.5 * t, temperature=jnp.linspace(0.5, 1.5, 6)),
        lambda t: criteria.divergence_below(2.0 / t),
        lambda t: criteria.patience(1),
    ],
)
@pytest.mark.parametrize("strictness", [1.0, jnp.array([1.0, 1.5, 0.5, 1.0, 1.2])])
def test_a_row_with_many_places_leaves_once_each_of_them_would(make, strictness):
    rule = make(strictness)
    found = dx.replay(rule, PLACED)
    # place by place, each as a row of its own: the verdicts of a rule do not depend on whether it
    # has been followed
    memory, expected, verdicts = (
        rule.init(B * 3, jax.ShapeDtypeStruct((B * 3, C), jnp.float32)),
        np.full(B, 5),
        [],
    )
    for i in range(6):
        halt, memory = rule.update(jnp.int32(i), PLACED[i].reshape(B * 3, C), memory)
        verdicts.append(np.asarray(halt).reshape(B, 3).all(axis=1))
    for b in range(B):
        fired = [i for i in range(5) if verdicts[i][b]]
        expected[b] = fired[0] if fired else 5
    assert found.exit.tolist() == expected.tolist()


def test_persistently_counts_verdicts_in_a_row():
    sure = jnp.array([[5.0, 0.0], [0.0, 0.0]])  # sure or not
    logits = sure[
        jnp.array([[0, 1, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]]).T
    ]  # [E=6, B=3, C=2]
    exits = [
        dx.replay(criteria.consecutive(k, criteria.margin_above(0.5)), logits).exit.tolist()
        for k in (1, 2, 3)
    ]
    assert exits == [[0, 0, 5], [3, 1, 5], [4, 5, 5]]


MASK = jnp.array([[True, True, False]]).repeat(B, 0)


@pytest.mark.parametrize(
    "make, key",
    [
        (lambda: criteria.max_probability_above(0.6), "logits"),
        (lambda: criteria.entropy_below(0.8), "logits"),
        (lambda: criteria.margin_above(0.3), "logits"),
        (lambda: criteria.energy_below(-2.0), "logits"),
        (lambda: criteria.patience(1), "alike"),
        (lambda: criteria.divergence_below(0.8), "logits"),
        (lambda: criteria.saturation_above(0.3), "hidden"),
        (lambda: criteria.change_below(1.2), "hidden"),
        (lambda: criteria.residual_below(0.5), "residual"),
    ],
)
def test_padded_places_are_not_considered(make, key):
    values = {"residual": jnp.abs(PLACED[::-1, ..., 0]), "alike": PLACED + 2 * PLACED[5:]}
    values, key = values.get(key, PLACED), "logits" if key == "alike" else key
    padded = values.at[:, :, 2].set(jnp.nan)
    masks = jnp.broadcast_to(MASK, (6, B, 3))
    alone = dx.replay(make(), {key: values[:, :, :2]})
    found = dx.replay(make(), {key: padded, "mask": masks})
    np.testing.assert_array_equal(found.exit, alone.exit)
    assert len(set(alone.exit.tolist())) > 1 and found.nan_exits.sum() == 0
    assert (dx.replay(make(), {key: padded}).exit == 5).all(), "without a mask they hold every row"
    with pytest.raises(ValueError, match=r"`output\['mask'\]` must be bool"):
        dx.replay(make(), {key: values, "mask": masks[:, :, :2]})


def test_a_row_sure_at_its_real_places_exits_at_once():
    logits = jnp.zeros((4, 1, 6, 3)).at[:, :, :4, 0].set(9.0)
    mask = jnp.broadcast_to(jnp.arange(6) < 4, (4, 1, 6))
    outputs = {"logits": logits, "mask": mask}
    assert dx.replay(criteria.max_probability_above(0.9), outputs).exit.tolist() == [0]


@pytest.mark.parametrize(
    "make, wrong, never",
    [
        (criteria.max_probability_above, 90.0, jnp.inf),
        (criteria.margin_above, 1.5, 1.0),
        (criteria.entropy_below, -0.1, 0.0),
        (criteria.divergence_below, -1.0, -jnp.inf),
        (criteria.saturation_above, 1.1, 1.0),
        (criteria.change_below, -1e-3, 0.0),
        (criteria.residual_below, -1e-3, 0.0),
    ],
)
def test_finite_thresholds_that_no_score_passes_are_refused(make, wrong, never):
    with pytest.raises(ValueError, match=r"`threshold` must be at (most|least)"):
        make(wrong)
    with pytest.raises(ValueError, match=r"`threshold` must be at (most|least)"):
        make(jnp.array([0.5, wrong]))
    make(never)
    jax.jit(make)(wrong)  # what is traced is not looked into


@pytest.mark.parametrize(
    "make",
    [
        criteria.max_probability_above,
        criteria.entropy_below,
        criteria.margin_above,
        lambda t: criteria.energy_below(-t),
        criteria.divergence_below,
        lambda t: criteria.patience(1),
    ],
)
def test_one_logit_is_refused(make):
    logits = jnp.array([[[0.1], [-3.0]], [[0.2], [-2.0]]])
    with pytest.raises(ValueError, match="`logits` must have at least 2 classes"):
        dx.replay(make(0.5), logits)
    sigmoid = lambda z: jnp.concatenate([jnp.zeros_like(z), z], axis=-1)
    p = jax.nn.sigmoid(jnp.array([0.1, -3.0]))
    exits = dx.replay(criteria.max_probability_above(0.9, read=sigmoid), logits).exit
    np.testing.assert_array_equal(exits, np.where(np.maximum(p, 1 - p) > 0.9, 0, 1))


def test_rules_and_scores_run_under_the_debugging_modes():
    outputs = stored()
    excluded = outputs["logits"].at[..., 0].set(-1e30)  # a class with probability 0
    with jax.debug_nans(True), jax.debug_infs(True):
        for make, setting in (
            (criteria.max_probability_above, 0.5),
            (criteria.entropy_below, 0.5),
            (criteria.margin_above, 0.5),
            (criteria.energy_below, -1.0),
            (criteria.divergence_below, 0.1),
            (criteria.patience, 1),
        ):
            dx.replay(make(setting), excluded)
        for make in (criteria.saturation_above, criteria.change_below):
            zeros = {"hidden": outputs["hidden"].at[:, 0].set(0.0)}
            dx.replay(make(0.5), zeros)
            rule, one = make(0.5), jax.tree.map(lambda a: a[0], zeros)
            rule.update(jnp.int32(0), one, rule.init(B, one))  # not compiled
        rule = criteria.cumulative_halting_above(1.0)
        rule.update(jnp.int32(0), jax.tree.map(lambda a: a[0], outputs), rule.init(B, None))
    with jax.debug_nans(True):
        scores.entropy(jnp.array([0.0, -jnp.inf]))
        scores.kl(jnp.array([0.0, -jnp.inf]), jnp.array([0.0, -jnp.inf]))
