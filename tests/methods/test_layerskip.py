"""LayerSkip: golden rates and weights, the curricula, and the loss against a loop over blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.engine.deferred import deferred_parts
from dynexit.engine.steps import rematerialised
from dynexit.methods.language.exit_losses import exit_losses
from dynexit.methods.language.layerskip import drop_rates, exit_weights, exits_on, layerskip
from dynexit.objectives.chunked_cross_entropy import chunked_cross_entropy
from dynexit.objectives.multi_exit import multi_exit_cross_entropy

N, V, B, L = 4, 20, 3, 6
MODEL = dx.models.CausalLM(width=8, depth=N, heads=2).build(dx.Tokens(V), V)
PARAMS = MODEL.init(jax.random.key(0))
TOKENS = jax.random.randint(jax.random.key(1), (B, L + 1), 0, V)
INPUTS = {"tokens": TOKENS[:, :-1], "segments": jnp.array([[0, 0, 0, 1, 1, 1]] * B)}
LABELS = TOKENS[:, 1:].at[:, 2].set(-1)
HALF, KEY = jnp.float32(0.5), jax.random.key(0)


def test_golden_rates():
    golden = [0, 0.1041, 0.2190, 0.3459, 0.4860, 0.6407, 0.8114, 1]
    np.testing.assert_allclose(drop_rates(8, 1.0, 1.0), golden, atol=5e-5)
    over_time = [float(drop_rates(2, 1.0, t / 4)[1]) for t in range(5)]
    np.testing.assert_allclose(over_time, [0, 0.1892, 0.4142, 0.6818, 1], atol=5e-5)
    assert drop_rates(1, 0.5, 1.0).tolist() == [0.0]


@pytest.mark.parametrize(
    ("curve", "scale", "golden"),
    [
        ("paper", 0.2, [0, 0.0089, 0.0268, 0.0536, 0.0893, 0.1339, 0.1875, 0.5]),
        ("linear", 1.0, [0.0278, 0.0556, 0.0833, 0.1111, 0.1389, 0.1667, 0.1944, 0.2222]),
        ("linear", 0.2, [None, None, None, None, None, None, None, 0.5882]),
        ("sum", 1.0, [None, None, None, None, None, None, None, 0.3]),
        ("sum", 0.2, [None, None, None, None, None, None, None, 0.6818]),
        ("uniform", 1.0, [0.125] * 8),
    ],
)
def test_golden_weights(curve, scale, golden):
    found = exit_weights(jnp.ones(8, bool), curve, scale)
    assert float(found.sum()) == pytest.approx(1)
    for weight, wanted in zip(found.tolist(), golden, strict=True):
        assert wanted is None or weight == pytest.approx(wanted, abs=5e-5)


def test_weights_of_the_exits_that_are_on():
    on = jnp.array([False, True, False, True])
    assert exit_weights(on, "uniform", 0.5).tolist() == pytest.approx([0, 1 / 3, 0, 2 / 3])
    assert exit_weights(on, "sum", 1.0).tolist() == pytest.approx([0, 2 / 8, 0, 6 / 8])
    paper = dx.objectives.weights.layerskip(4, 0.2)
    wanted = [
        0,
        float(paper[1] / (paper[1] + paper[3])),
        0,
        float(paper[3] / (paper[1] + paper[3])),
    ]
    assert exit_weights(on, "paper", 0.2).tolist() == pytest.approx(wanted)


def test_a_rotation_as_long_as_the_depth_has_one_early_exit_and_visits_all():
    draw = jax.vmap(lambda key: exits_on(8, "rotational", HALF, 8, key))
    found = np.asarray(draw(jax.random.split(jax.random.key(0), 800)))
    assert found[:, -1].all() and set(found[:, :-1].sum(axis=1)) == {0, 1}
    np.testing.assert_allclose(found[:, :-1].mean(axis=0), 1 / 8, atol=4 * (7 / 64 / 800) ** 0.5)
    second = exits_on(9, "rotational", HALF, 4, jax.random.key(3))
    assert np.diff(np.flatnonzero(second[:-1])).tolist() == [4] * (int(second[:-1].sum()) - 1)


def test_the_gradual_curriculum_opens_exits_from_the_top_over_half_of_training():
    on = lambda t: exits_on(4, "gradual", jnp.float32(t), 1, jax.random.key(0)).tolist()
    assert on(0.0) == [False, False, False, True]
    assert on(0.25) == [False, False, True, True]
    assert on(0.49) == [False, True, True, True]
    assert on(0.5) == exits_on(4, "all", HALF, 1, jax.random.key(0)).tolist() == [True] * 4


def of_rows(loss):
    """The losses `[B]` and the gradient of their sum weighted by the row, compiled."""
    total = lambda params: ((losses := loss(params)) @ jnp.arange(1.0, B + 1), losses)
    return jax.jit(jax.grad(total, has_aux=True))


def loop(params, kept):
    """Hidden states `[N, B, L, D]` of a loop over blocks in which rows skip blocks."""
    step, _ = deferred_parts(MODEL.steps(params))
    state, found = MODEL.embed(params, INPUTS), []
    for i in range(N):
        new, _ = step.apply(step.select(jnp.int32(i)), jnp.int32(i), state)
        state = {**state, "h": jnp.where(kept[i][:, None, None], new["h"], state["h"])}
        found.append(state["h"])
    return jnp.stack(found)


def wanted_of(params, hidden):
    """Losses `[E, B]` from all logits."""
    return multi_exit_cross_entropy(MODEL.decoder.logits(params, hidden), LABELS)


@pytest.mark.parametrize("remat", [False, True])
def test_the_loss_and_its_gradient_are_those_of_a_loop_with_skipped_blocks(remat):
    key, p = jax.random.key(5), 0.9
    method = layerskip(p, "constant", "linear", 0.5, "all")
    steps = (lambda params: rematerialised(MODEL.steps(params))) if remat else MODEL.steps
    model = MODEL._replace(steps=steps)
    kept = jax.random.bernoulli(
        jax.random.split(key)[0], 1 - drop_rates(N, p, 1.0)[:, None], (N, B)
    )
    assert (kept != kept[:, :1]).any() and not kept.all(), "rows skip blocks of their own"

    def wanted(params):
        losses = wanted_of(params, loop(params, kept))
        return (exit_weights(jnp.ones(N, bool), "linear", 0.5)[:, None] * losses).sum(axis=0)

    found = lambda params: method.loss(model, params, INPUTS, LABELS, key, HALF)[0]
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    jax.tree.map(close, *(of_rows(loss)(PARAMS) for loss in (found, wanted)))


def test_a_last_block_that_is_always_dropped_leaves_the_state_of_the_one_before():
    losses = exit_losses(MODEL, PARAMS, INPUTS, LABELS, jnp.ones(N, bool))
    kept = jnp.ones((N, B), bool).at[-1].set(False)
    step = dx.transforms.dropped_blocks(MODEL.steps(PARAMS), kept, jnp.ones(N))
    dropped = exit_losses(MODEL, PARAMS, INPUTS, LABELS, jnp.ones(N, bool), step)
    np.testing.assert_array_equal(dropped[-1], dropped[-2])
    np.testing.assert_allclose(dropped[-2], losses[-2], rtol=1e-6)
    assert (losses[-1] != losses[-2]).all()


def test_blocks_are_dropped_as_often_as_they_should():
    rates, draws = np.asarray(drop_rates(N, 0.3, 1.0)), 10_000
    kept = jax.random.bernoulli(jax.random.key(0), 1 - rates[:, None], (N, draws))
    deviation = (rates * (1 - rates) / draws) ** 0.5
    assert (np.abs(1 - np.asarray(kept).mean(axis=1) - rates) <= 3 * deviation).all()
    method = layerskip(0.3, "rising")
    at = jax.jit(
        lambda t, key: method.loss(MODEL, PARAMS, INPUTS, LABELS, key, t)[1]["kept_blocks"]
    )
    shares = [float(at(jnp.float32(1.0), jax.random.key(k))) for k in range(60)]
    assert float(at(jnp.float32(0.0), jax.random.key(0))) == 1.0
    assert np.mean(shares) == pytest.approx(1 - rates.mean(), abs=0.03)


def test_exits_that_are_off_are_not_computed_and_change_no_gradient(capfd):
    class Counted:
        vocabulary, depth, context = V, N, None

        def logits(self, params, h):
            jax.debug.print("head")
            return MODEL.decoder.logits(params, h)

    model = MODEL._replace(decoder=Counted())
    on = jnp.array([False, True, False, True])
    losses = jax.jit(lambda on: exit_losses(model, PARAMS, INPUTS, LABELS, on))(on)
    jax.effects_barrier()
    assert capfd.readouterr().out.count("head") == 2
    assert ((losses != 0).any(axis=1) == on).all()
    last = jnp.arange(N) == N - 1
    alone = of_rows(lambda p: wanted_of(p, loop(p, jnp.ones((N, B), bool))[-1:])[0])(PARAMS)
    found = of_rows(lambda p: exit_losses(MODEL, p, INPUTS, LABELS, last).sum(axis=0))(PARAMS)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    jax.tree.map(close, found, alone)


def test_without_dropout_and_early_exits_it_is_the_loss_of_the_last_exit():
    method = layerskip(dropout=0.0, early_scale=0.0, curriculum="all")
    loss, metrics = jax.jit(lambda p: method.loss(MODEL, p, INPUTS, LABELS, KEY, HALF))(PARAMS)
    full = dx.run_all(MODEL.steps(PARAMS), MODEL.embed(PARAMS, INPUTS))["logits"]
    np.testing.assert_allclose(loss, multi_exit_cross_entropy(full, LABELS)[-1], rtol=1e-5)
    assert float(metrics["exits_on"]) == 1 and float(metrics["loss_exit_early"]) == 0


def test_the_memory_of_four_exits_is_that_of_one():
    """A training gradient with a vocabulary whose logits are most of the memory."""
    vocabulary, length = 4096, 128
    model = dx.models.CausalLM(width=32, depth=4, heads=2).build(dx.Tokens(vocabulary), vocabulary)
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((8, length), jnp.int32)

    def one(params, tokens, labels):
        steps = rematerialised(deferred_parts(model.steps(params))[0])
        _, output = dx.run_full(steps, model.embed(params, tokens))
        read = lambda h: model.decoder.logits(params, h)
        return chunked_cross_entropy(read, output["hidden"][None], labels, 16).mean()

    def four(params, tokens, labels):
        step = rematerialised(model.steps(params))
        on = jnp.ones(4, bool)
        return exit_losses(model, params, tokens, labels, on, step, places=16).sum(axis=0).mean()

    def peak(loss):
        compiled = jax.jit(jax.grad(loss)).lower(params, tokens, tokens).compile()
        found = compiled.memory_analysis()
        return found.temp_size_in_bytes + found.argument_size_in_bytes + found.output_size_in_bytes

    assert peak(four) <= 1.10 * peak(one)
    assert peak(four) < 4 * 4 * 8 * length * vocabulary  # the logits of one exit, thrice over


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("dropout", 1.0),
        ("schedule", "falling"),
        ("curve", "cube"),
        ("early_scale", -1.0),
        ("curriculum", "random"),
        ("rotation", 0),
        ("rule", "entropy"),
    ],
)
def test_wrong_arguments_are_refused_by_name(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        layerskip(**{argument: value})


@pytest.mark.refuses
def test_a_model_that_is_no_language_model_is_refused():
    model = dx.models.Mlp(width=8, depth=2).build((4,), 3)
    params, x, y = model.init(jax.random.key(0)), jnp.ones((2, 4)), jnp.array([0, 1])
    with pytest.raises(TypeError, match="`model` must have a decoder"):
        layerskip().loss(model, params, x, y, jax.random.key(0), HALF)


@pytest.mark.parametrize("rule", ["depth", "confidence"])
def test_rules(rule):
    method = layerskip(rule=rule)
    full = method.candidates.full(N, {"temperature": np.ones(N, np.float32)})
    outputs = dx.run_all(MODEL.steps(PARAMS), MODEL.embed(PARAMS, INPUTS))
    assert (dx.replay(method.criterion(full), outputs).exit == N - 1).all()
    if rule == "depth":
        points = method.candidates.points(None, {}, np.arange(1.0, N + 1))
        for k, depth in enumerate(points["depth"]):
            exits = dx.replay(method.criterion({"depth": depth}), outputs).exit
            assert (exits == k).all()
