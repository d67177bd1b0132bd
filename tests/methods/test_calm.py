"""CALM: golden decays and weights, the score against thresholds in words, tests on free text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.calibration.rules.bounds import hoeffding_bentkus
from dynexit.criteria.combinators import clipped_decay, scaled_decay
from dynexit.methods.language.calm import calm, calm_weights
from dynexit.methods.language.calm_classifier import fit_calm_classifier
from dynexit.methods.language.calm_criterion import calm_criterion
from dynexit.methods.language.text_risk import (
    different_tokens,
    fixed_sequence,
    risk_controlled_threshold,
    token_f1_loss,
)
from dynexit.objectives.multi_exit import multi_exit_cross_entropy

N, V, B, L = 3, 12, 3, 6
MODEL = dx.models.CausalLM(width=16, depth=N, heads=2, context=64).build(dx.Tokens(V), V)
PARAMS = MODEL.init(jax.random.key(0))
PARAMS = PARAMS | {
    "blocks": jax.tree.map(lambda a: 3 * a if a.ndim > 2 else a, PARAMS["blocks"]),
    "embed": {"tokens": 30 * PARAMS["embed"]["tokens"]},
}
TOKENS = jax.random.randint(jax.random.key(1), (B, L), 0, V)
GOLDEN = {
    "scaled": (scaled_decay, [0.5, 0.497, 0.4684, 0.4568, 0.451]),
    "clipped": (clipped_decay, [0.55, 0.5439, 0.4868, 0.4635, 0.4519]),
}
TIMES = jnp.array([0, 1, 16, 32, 63]) / 64


def two_classes(margin):
    """Logits of two classes whose probabilities differ by `margin`, `[..., 2]`."""
    margin = jnp.asarray(margin, jnp.float32)
    return jnp.log(jnp.stack([(1 + margin) / 2, (1 - margin) / 2], axis=-1))


def exits_at(criterion, margins, **more):
    """Whether rows with these margins exit at the first of two exits."""
    logits = jnp.broadcast_to(two_classes(margins), (2, *jnp.shape(margins), 2))
    more = {k: jnp.broadcast_to(a, (2, *a.shape)) for k, a in more.items()}
    return dx.replay(criterion, {"logits": logits, **more}).exit == 0


@pytest.mark.parametrize("decay", GOLDEN)
def test_tokens_exit_just_above_the_golden_thresholds(decay):
    function, golden = GOLDEN[decay]
    np.testing.assert_allclose(function(0.5, TIMES * 64, 64, 4.0), golden, atol=6e-5)
    criterion = calm_criterion(0.5, tau=4.0, decay=decay)
    above, below = jnp.array(golden) + 1e-4, jnp.array(golden) - 1e-4
    assert exits_at(criterion, above, time=TIMES).all()
    assert not exits_at(criterion, below, time=TIMES).any()


@pytest.mark.parametrize("decay", GOLDEN)
def test_scores_decide_as_the_decayed_threshold(decay):
    rng = np.random.default_rng(0)
    margins, times = rng.uniform(0, 0.999, 500), rng.uniform(size=500)
    for threshold in (0.0, 0.3, 0.8, 1.0):
        wanted = margins > np.asarray(GOLDEN[decay][0](threshold, times, 1, 4.0))
        criterion = calm_criterion(threshold, decay=decay)
        found = exits_at(criterion, jnp.array(margins), time=jnp.array(times, jnp.float32))
        assert (np.asarray(found) != wanted).mean() <= 0.002  # rounding at the threshold


def test_a_window_is_as_certain_as_its_least_certain_place():
    margins = jnp.array([[0.9, 0.9, 0.85], [0.85, 0.9, 0.9]])
    assert exits_at(calm_criterion(0.88), margins).tolist() == [True, False]  # 0.85 late, early
    mask = jnp.array([[True] * 3, [False, True, True]])
    assert exits_at(calm_criterion(0.88), margins, mask=mask).tolist() == [True, True]
    with pytest.raises(ValueError, match="output\\['time'\\]"):
        exits_at(calm_criterion(0.88), margins[0])


def test_saturation_compares_consecutive_exits_and_never_exits_at_the_first():
    angles = jnp.array([0.0, 0.1, 1.0, 1.05])
    hidden = jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1)[:, None]  # [E=4, B=1, D=2]
    outputs = {"hidden": jnp.concatenate([hidden, hidden[::-1]], 1), "time": jnp.zeros((4, 2))}
    exit_of = lambda t: dx.replay(calm_criterion(t, "saturation"), outputs).exit.tolist()
    assert exit_of(0.99) == [1, 1] and exit_of(0.997) == [3, 1] and exit_of(-1.0) == [1, 1]


def test_another_threshold_compiles_nothing():
    logits = two_classes(jnp.array([[0.2, 0.6], [0.5, 0.9], [0.5, 0.9]]))
    outputs = {"logits": logits, "time": jnp.zeros((3, 2))}
    run = jax.jit(lambda c, o: dx.replay(c, o).exit)
    for make in (calm_criterion, lambda t: calm_criterion(t, tau=1.0 + t)):
        assert [run(make(t), outputs).tolist() for t in (0.1, 0.4, 0.7)] == [[0, 0], [1, 0], [2, 1]]
    assert run._cache_size() == 1


def test_golden_weights():
    golden = [0.0476, 0.0952, 0.1429, 0.1905, 0.2381, 0.2857]
    np.testing.assert_allclose(calm_weights(6), golden, atol=5e-5)
    np.testing.assert_allclose(calm_weights(3, "geometric"), np.array([1, 2, 4]) / 7, rtol=1e-6)
    assert calm_weights(4, "uniform").tolist() == [0.25] * 4


def test_the_loss_is_the_weighted_sum_of_the_exits():
    labels = TOKENS.at[:, 2].set(-1)
    given = TOKENS, labels, jax.random.key(0), jnp.float32(0.5)

    @jax.jit
    def both(params):
        outputs = dx.run_all(MODEL.steps(params), MODEL.embed(params, TOKENS), N)
        losses = multi_exit_cross_entropy(outputs["logits"], labels)
        return *calm().loss(MODEL, params, *given), losses

    loss, metrics, losses = both(PARAMS)
    np.testing.assert_allclose(loss, np.average(losses, axis=0, weights=[1, 2, 3]), rtol=1e-5)
    assert float(metrics["loss_exit_first"]) == pytest.approx(float(losses[0].mean()), rel=1e-5)


class Identity:
    """A decoder whose logits are the state."""

    def logits(self, weights, state):
        return state


def low_tokens_change(h):
    """Adds the next token, far above the present one, to tokens below V / 2."""
    return h + 9 * jnp.roll(h.at[..., V // 2 :].set(0), 1, axis=-1)


def test_the_classifier_learns_where_an_exit_agrees_with_full_depth():
    """In this network it agrees for tokens of at least V / 2."""
    blocks = lambda h: h, low_tokens_change
    apply = lambda w, i, h: (lambda new: (new, {"hidden": new}))(jax.lax.switch(i, blocks, h))
    embed = lambda params, tokens: jax.nn.one_hot(tokens, V)
    step = lambda params: dx.Step(lambda i: None, apply)
    model = dx.Model(lambda key: {}, embed, step, 2, ("a", "b"), Identity())
    keys = jax.random.split(jax.random.key(2), 100)
    batches = [jax.random.randint(key, (4, 16), 0, V) for key in keys]
    classifier, losses = fit_calm_classifier(model, {}, batches, 0.1)
    assert losses[0] == pytest.approx(np.log(2), rel=1e-5) and losses[-10:].max() < 0.1
    hidden = jnp.stack([jax.nn.one_hot(jnp.arange(V), V)] * 2)
    outputs = {"hidden": hidden, "time": jnp.zeros((2, V))}
    criterion = calm_criterion(0.5, "classifier", tau=0.0, classifier=classifier)
    assert dx.replay(criterion, outputs).exit.tolist() == [1] * (V // 2) + [0] * (V // 2)


@pytest.mark.parametrize(
    ("n", "mean", "alpha", "golden"),
    [
        (100, 0.02, 0.1, 0.005287),
        (500, 0.05, 0.1, 9.623e-5),
        (500, 0.08, 0.1, 0.2041),
        (1000, 0.0, 0.02, 1.683e-9),
    ],
)
def test_golden_p_values(n, mean, alpha, golden):
    assert hoeffding_bentkus(mean, n, alpha) == pytest.approx(golden, rel=2e-3)


def test_losses_of_texts():
    text = np.array([3, 3, 5])
    assert token_f1_loss(text, text) == different_tokens(text, text) == 0
    assert token_f1_loss(text, text[:0]) == different_tokens(text, text[:0]) == 1
    assert token_f1_loss(text[:0], text[:0]) == different_tokens(text[:0], text[:0]) == 0
    assert token_f1_loss(text, np.array([5, 3, 3])) == 0  # order does not count
    assert token_f1_loss(text, np.array([3])) == pytest.approx(0.5)
    assert different_tokens(text, np.array([5, 3, 3])) == pytest.approx(2 / 3)


@pytest.mark.parametrize("binary", [False, True])
def test_violations_are_as_rare_as_guaranteed(binary):
    """100 splits of simulated losses; a threshold violates where its true mean is too high."""
    rng, tolerance, epsilon, n = np.random.default_rng(0), 0.1, 0.2, 200
    means = np.array([0.01, 0.03, 0.06, 0.09, 0.101, 0.13, 0.2])
    violations, accepted = 0, []
    for _ in range(100):
        if binary:
            losses = (rng.uniform(size=(len(means), n)) < means[:, None]).astype(float)
        else:
            losses = rng.beta(means[:, None], 1 - means[:, None], size=(len(means), n))
        _, p_values = fixed_sequence(losses, tolerance, epsilon)
        count = int((p_values <= epsilon).sum())
        accepted.append(count)
        violations += count > 0 and means[count - 1] > tolerance
    assert violations / 100 <= epsilon + 3 * (epsilon * (1 - epsilon) / 100) ** 0.5
    assert np.mean(accepted) > 2  # the tests are not vacuous


def test_a_sequence_ends_at_its_first_failure():
    seen = []

    def losses():
        for k, level in enumerate([0.0, 0.5, 0.0]):
            seen.append(k)
            yield np.full(50, level)

    tested, p_values = fixed_sequence(losses(), 0.1, 0.05)
    assert seen == [0, 1] and tested.shape == (2, 50) and (p_values <= 0.05).tolist() == [1, 0]


@pytest.mark.slow
def test_thresholds_of_free_text_share_one_program():
    from dynexit.decoding.program import run_rounds

    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, V, 3) for _ in range(12)]
    exits = lambda t: dx.decoding.Exits((1, 2), calm_criterion(t, tau=0.0))
    run = lambda thresholds, tolerance, **more: risk_controlled_threshold(
        MODEL, PARAMS, prompts, exits, thresholds, 6, tolerance, 0.2, different_tokens, **more
    )
    found = run([1.0, 0.99, 0.0], 0.3)
    compiled = run_rounds._cache_size()
    assert found.losses[0].max() == 0 and found.mean_depth[0] == N  # 1 is never passed
    assert found.threshold >= 0.0 and found.losses.shape == (len(found.tested), 12)
    all_of_them = run([1.0, 0.9, 0.5, 0.0], 1.0)
    assert all_of_them.threshold == 0.0 and all_of_them.mean_depth[-1] == 1
    assert (np.diff(all_of_them.mean_depth) <= 0).all() and all_of_them.losses[-1].mean() > 0
    assert run_rounds._cache_size() == compiled
    full = dx.decoding.generate(MODEL, PARAMS, prompts, 6).tokens
    early = dx.decoding.generate(MODEL, PARAMS, prompts, 6, exits=exits(0.0)).tokens
    lost = [different_tokens(a, b) for a, b in zip(early, full, strict=True)]
    assert all_of_them.losses[-1].tolist() == lost
    nothing = run([0.0], 0.01, references=early)  # the early text is the reference
    assert nothing.threshold == np.inf and nothing.losses.max() == 0


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"measure": "entropy"}, ValueError, "`measure` must be one of"),
        ({"decay": "none"}, ValueError, "`decay` must be one of"),
        ({"tau": -1.0}, ValueError, "`tau` must be"),
        ({"threshold": 1.2}, ValueError, "`threshold` must be at most"),
        ({"measure": "classifier"}, TypeError, "'classifier' without one"),
        ({"classifier": {}}, TypeError, "'margin' with one"),
    ],
)
def test_wrong_arguments_are_refused(change, error, match):
    with pytest.raises(error, match=match):
        calm_criterion(**{"threshold": 0.5} | change)


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tolerance": 0.0}, "`tolerance`"),
        ({"epsilon": 1.0}, "`epsilon` must lie between 0 and 1"),
        ({"thresholds": []}, "`thresholds` must hold"),
        ({"references": []}, "`references` must be one for each of the 1 prompts, got 0"),
    ],
)
def test_wrong_arguments_of_the_tests_are_refused(change, match):
    given = {"thresholds": [1.0], "max_tokens": 2, "tolerance": 0.1} | change
    exits = lambda t: dx.decoding.Exits((1,), calm_criterion(t))
    with pytest.raises(ValueError, match=match):
        risk_controlled_threshold(MODEL, PARAMS, [[1]], exits, **given)
