"""Recurrent depth: the law of the steps, where gradients reach, and a row's depth in company."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dynexit as dx
from dynexit.methods.recurrent.recurrent_depth import first_state, recurrent_depth, sampled_steps

MODEL = dx.models.RecurrentDepth(width=8, heads=2, steps=24).build(dx.Tokens(7), 7)
PARAMS = MODEL.init(jax.random.key(0))
TOKENS = jax.random.randint(jax.random.key(1), (3, 6), 0, 7)
LABELS = jax.random.randint(jax.random.key(2), (3, 6), 0, 7)


def draws(mean, count=60_000):
    return np.asarray(
        jax.vmap(lambda key: sampled_steps(key, mean))(jax.random.split(jax.random.key(0), count))
    )


def test_the_law_of_the_steps_has_its_golden_numbers():
    r = draws(32.0)
    np.testing.assert_allclose([r.mean(), r.std()], [33.0, 17.97], rtol=0.01)
    np.testing.assert_allclose(np.quantile(r, [0.05, 0.5, 0.95]), [12, 29, 67], atol=1)
    np.testing.assert_allclose((r <= 8).mean(), 0.0144, atol=0.002)
    for mean, expected, deviation in ((8.0, 9.0, 5.1), (4.0, 5.0, 2.9)):
        r = draws(mean)
        np.testing.assert_allclose([r.mean(), r.std()], [expected, deviation], rtol=0.02)
        assert r.min() >= 1


def test_all_devices_draw_the_same_depth_and_the_key_alone_decides_it():
    """One device with all rows, other rows and weights, and four devices with a row each."""
    method = recurrent_depth(6.0, truncate=1, noise=0.0)
    tokens = jnp.concatenate([TOKENS, TOKENS[:1]])
    drawn = lambda p, x, key: method.loss(MODEL, p, x, x, key, jnp.float32(0.0))[1]["iterations"][
        None
    ]
    whole, rows = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("data")
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    one, four = (
        jax.jit(drawn),
        jax.jit(jax.shard_map(drawn, mesh=mesh, in_specs=(whole, rows, whole), out_specs=rows)),
    )
    seen = []
    for key in jax.random.split(jax.random.key(4), 6):
        seen += one(PARAMS, tokens, key).tolist()
        assert (
            one(jax.tree.map(lambda a: 2 * a, PARAMS), (tokens + 1) % 7, key).tolist() == seen[-1:]
        )
        assert four(PARAMS, tokens, key).tolist() == seen[-1:] * 4
    assert len(set(seen)) > 2


def test_the_first_state_has_the_spread_of_the_release():
    state = first_state(jax.random.key(0), jnp.zeros((100, 100, 8)))
    np.testing.assert_allclose(state.std(), 0.6240, rtol=0.01)
    assert np.abs(state).max() <= 3 * np.sqrt(2 / 5) + 1e-5


def reference(params, r, truncate, start):
    """The loss of r iterations by a Python loop; `start` is added to the state before the
    iterations that carry gradients.
    """
    step, state = MODEL.steps(params), MODEL.embed(params, TOKENS)
    still = MODEL.steps(jax.lax.stop_gradient(params))
    for i in range(r):
        if i < r - truncate:
            state = {
                **state,
                "h": still.apply(still.select(0), i, jax.lax.stop_gradient(state))[0]["h"],
            }
            continue
        if i == max(0, r - truncate):
            state = {**state, "h": state["h"] + start}
        state, output = step.apply(step.select(0), i, state)
    log_p = jax.nn.log_softmax(output["logits"])
    return -jnp.take_along_axis(log_p, LABELS[..., None], axis=-1).mean()


@pytest.mark.parametrize("key", [0, 3, 5])
def test_loss_and_gradient_are_the_loop(key):
    method = recurrent_depth(6.0, truncate=3, noise=0.0)

    def mean(params):
        losses, metrics = method.loss(
            MODEL, params, TOKENS, LABELS, jax.random.key(key), jnp.float32(0.0)
        )
        return losses.mean(), metrics["iterations"]

    (value, r), gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))(PARAMS)
    wanted, slope = jax.jit(jax.value_and_grad(lambda p: reference(p, int(r), 3, 0.0)))(PARAMS)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    chex.assert_trees_all_close(gradient, slope, rtol=1e-3, atol=1e-5)
    assert max(np.abs(g).max() for g in jax.tree.leaves(gradient["prelude"])) > 0, (
        "through the injections"
    )


@pytest.mark.slow
def test_two_first_states_come_to_one_answer():
    """After training, KL between the answers of two draws of s_0: clear after one iteration, gone
    after all (prefix parity).
    """
    model, method, optimizer = (
        dx.models.RecurrentDepth(width=8, heads=2, steps=24).build(dx.Tokens(2), 2),
        recurrent_depth(4.0, truncate=2),
        optax.adam(3e-3),
    )

    def bits(key):
        drawn = jax.random.randint(key, (32, 6), 0, 2)
        return drawn, drawn.cumsum(axis=1) % 2

    @jax.jit
    def train(params):
        def update(carry, k):
            params, moments = carry
            first, second = jax.random.split(jax.random.fold_in(jax.random.key(5), k))
            loss = lambda p: method.loss(model, p, *bits(first), second, jnp.float32(0.0))[0].mean()
            value, slope = jax.value_and_grad(loss)(params)
            moved, moments = optimizer.update(slope, moments)
            return (optax.apply_updates(params, moved), moments), value

        return jax.lax.scan(update, (params, optimizer.init(params)), jnp.arange(300))

    with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in integers
        (params, _), losses = train(model.init(jax.random.key(0)))
    assert losses[-20:].mean() < 0.9 * np.log(2)

    @jax.jit
    def answers(key):
        tokens, _ = bits(jax.random.key(6))
        h = first_state(key, model.embed(params, tokens)["h"])
        run = dx.run_all(
            model.steps(params), model.embed(params, {"tokens": tokens, "h": h}), model.depth
        )
        return jax.nn.log_softmax(run["logits"])

    one, other = (answers(jax.random.key(seed)) for seed in (1, 2))
    divergence = (
        (jnp.exp(one) * (one - other)).sum(axis=-1).mean(axis=(1, 2))[jnp.array([0, 1, 3, 23])]
    )
    assert (
        divergence[0] > 1e-3
        and (divergence[1:3] < 0.5 * divergence[:2]).all()
        and divergence[-1] < 1e-6
    ), divergence


def test_steps_never_exceed_the_model():
    method = recurrent_depth(500.0)
    assert (
        int(
            method.loss(MODEL, PARAMS, TOKENS, LABELS, jax.random.key(0), jnp.float32(0.0))[1][
                "iterations"
            ]
        )
        == 24
    )


@pytest.mark.parametrize("name, threshold", [("divergence", 1e-3), ("latent", 0.05)])
def test_a_row_in_company_is_the_row_alone_and_a_nan_poisons_no_other(name, threshold):
    rule = recurrent_depth(4.0, rule=name).criterion({"threshold": jnp.float32(threshold)})
    step, state = MODEL.steps(PARAMS), MODEL.embed(PARAMS, TOKENS)
    state["input"] = state["input"].at[1].multiply(3.0)
    together = dx.run_until(step, state, MODEL.depth, rule, tile=2)
    streamed = dx.run_stream(step, state, MODEL.depth, rule, slots=2)
    assert len(set(together.exit_depth.tolist())) > 1
    for row in range(3):
        alone = dx.run_until(
            step, jax.tree.map(lambda a, r=row: a[r : r + 1], state), MODEL.depth, rule
        )
        for found in (together, streamed):
            assert found.exit_depth[row] == alone.exit_depth[0]
            jax.tree.map(
                lambda a, b, r=row: np.testing.assert_allclose(a[r], b[0], atol=1e-5),
                found.output,
                alone.output,
            )
    state["input"] = state["input"].at[0, 0, 0].set(jnp.nan)
    for run in (dx.run_until, dx.run_stream):
        ill = run(step, state, MODEL.depth, rule)
        assert ill.exit_depth[0] == 24 and ill.nan_exits.tolist() == [24, 0, 0]
        assert ill.exit_depth[1:].tolist() == together.exit_depth[1:].tolist()


def test_thresholds_and_refusals():
    points = recurrent_depth(4.0).candidates.points(None, {}, None)["threshold"]
    outputs = jnp.zeros((5, 2, 3, 4))
    assert dx.replay(
        recurrent_depth(4.0).criterion({"threshold": points[0]}), outputs
    ).exit.tolist() == [4, 4], "full depth"
    assert dx.replay(
        recurrent_depth(4.0).criterion({"threshold": points[1]}), outputs
    ).exit.tolist() == [1, 1]
    for call, words in (
        (lambda: recurrent_depth(0.0), "`mean` must be above 0, got 0.0"),
        (lambda: recurrent_depth(4.0, sigma=-1.0), "`sigma` must be at least 0, got -1.0"),
        (lambda: recurrent_depth(4.0, thresholds=(-0.1,)), "`thresholds` must have shape"),
        (lambda: recurrent_depth(4.0, truncate=0), "`truncate` must be at least 1"),
        (
            lambda: recurrent_depth(4.0, rule="kl"),
            "`rule` must be 'divergence' or 'latent', got 'kl'",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            call()
