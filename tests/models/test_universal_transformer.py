"""The universal transformer against its equations, place by place, and its places that halt one by
one.
"""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.engine.streaming.stream import is_tied
from dynexit.methods.halting.act import act
from dynexit.methods.halting.pondernet import pondernet
from dynexit.models.recurrent.universal_transformer import coordinates
from dynexit.objectives.act import act_account

V, C, D, HEADS, N, B, L = 7, 5, 8, 2, 5, 6, 4
TOKENS = jax.random.randint(jax.random.key(9), (B, L), 0, V)


def made(**options):
    """A model and parameters away from their initial zeros and ones."""
    options = {"width": D, "heads": HEADS, "steps": N, "hidden": 12, "halt_bias": -1.0} | options
    model = dx.models.UniversalTransformer(**options).build(dx.Tokens(V), C)
    draw = np.random.default_rng(1)
    scatter = lambda a: np.asarray(a) + np.float32(0.3) * draw.standard_normal(a.shape, np.float32)
    return model, jax.tree.map(scatter, model.init(jax.random.key(0)))


def run(model, params, tokens):
    return jax.jit(lambda p, x: dx.run_all(model.steps(p), model.embed(p, x), model.depth))(
        params, tokens
    )


def dense(x, p):
    """Heads and their channels are one axis here."""
    return x @ p["kernel"].reshape(x.shape[-1], -1) + p["bias"].ravel()


def norm(x, p):
    p = p["LayerNorm_0"]
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def attention(x, p):
    """One row `[L, D]`, head by head and place by place."""
    q, k, v = np.split(dense(x, p["qkv"]), 3, axis=-1)
    mixed, size = np.zeros_like(x), D // HEADS
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(x)):
            scores = np.exp(k[:, part] @ q[i, part] / np.sqrt(size))
            mixed[i, part] = scores @ v[:, part] / scores.sum()
    return dense(mixed, p["out"])


def transition(x, p):
    return dense(np.maximum(dense(x, p["up"]), 0), p["down"])


def steps_of(tokens, params, post_norm=True, begin=0):
    """One row: states `[N, L, D]` after each step and halting logits `[N, L]` before it."""
    h = np.asarray(params["embed"]["embedding"], np.float64)[np.asarray(tokens)] * np.sqrt(D)
    states, halting, p = [], [], params["block"]
    for t in range(1, N + 1):
        where = np.zeros((len(h), D))
        for i in range(len(h)):
            for j in range(D // 2):
                rate = 10000 ** (-2 * j / D)
                where[i, 2 * j] = np.sin((begin + i) * rate) + np.sin(t * rate)
                where[i, 2 * j + 1] = np.cos((begin + i) * rate) + np.cos(t * rate)
        x = h + where
        halting.append(dense(x, params["halt"]["halt"])[:, 0])
        if post_norm:
            a = norm(x + attention(x, p), p["norm1"])
            h = norm(a + transition(a, p), p["norm2"])
        else:
            a = x + attention(norm(x, p["norm1"]), p)
            h = a + transition(norm(a, p["norm2"]), p)
        states.append(h)
    return np.array(states), np.array(halting)


def read(state, params, post_norm=True):
    head = params["head"]
    return dense(state if post_norm else norm(state, head["norm"]), head["logits"])


@pytest.mark.parametrize("post_norm", [True, False])
def test_every_step_is_its_equations(post_norm):
    model, params = made(post_norm=post_norm, halting="none")
    outputs = run(model, params, TOKENS)
    for b in range(B):
        states, halting = steps_of(TOKENS[b], params, post_norm)
        np.testing.assert_allclose(
            outputs["logits"][:, b], read(states, params, post_norm), rtol=1e-3, atol=1e-3
        )
        np.testing.assert_allclose(outputs["halt_logit"][:, b], halting, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("halting, post_norm", [("accumulated", True), ("basic", False)])
def test_what_is_read_is_the_mean_of_the_states(halting, post_norm):
    """A loop over rows and places; the answer of a place after its halting step does not change any
    more.
    """
    model, params = made(halting=halting, post_norm=post_norm)
    outputs = run(model, params, TOKENS)
    for b in range(B):
        states, logits = steps_of(TOKENS[b], params, post_norm)
        for place in range(L):
            spent, mean = 0.0, np.zeros(D)
            for n in range(N):
                p, y = 1 / (1 + np.exp(-logits[n, place])), states[n, place]
                keep = (lambda w: 1.0) if halting == "accumulated" else (lambda w: 1 - w)
                answer = keep(1 - spent) * mean + (1 - spent) * y
                np.testing.assert_allclose(
                    outputs["logits"][n, b, place],
                    read(answer, params, post_norm),
                    rtol=1e-3,
                    atol=2e-3,
                )
                w = 0.0 if spent == 1.0 else 1 - spent if spent + p > 0.99 else p
                mean, spent = keep(w) * mean + w * y, 1.0 if spent + p > 0.99 else spent + p
    assert len(np.unique(act_account(outputs["accumulated"]).updates)) > 1


def test_golden_sure_at_once_is_one_block_and_ponder_two():
    """Sheet, point 5."""
    model, params = made()
    params["halt"]["halt"]["bias"] = np.full(1, 200.0, np.float32)
    outputs = run(model, params, TOKENS)
    account = act_account(outputs["accumulated"])
    np.testing.assert_array_equal(account.ponder, np.full((B, L), 2.0))
    wanted = np.stack([read(steps_of(TOKENS[b], params)[0][0], params) for b in range(B)])
    np.testing.assert_allclose(outputs["logits"][0], wanted, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(outputs["logits"][-1], outputs["logits"][0])


@pytest.mark.parametrize(
    "bias, probability, steps, ponder", [(1.0, 0.731, 2, 2.269), (-1.0, 0.269, 4, 4.193)]
)
def test_golden_halting_of_a_new_model(bias, probability, steps, ponder):
    """Every place where the halting kernel begins with 0, as in Scenic; of 100 models as they are
    drawn here, the median.
    """
    model = dx.models.UniversalTransformer(width=D, heads=HEADS, steps=8, halt_bias=bias).build(
        dx.Tokens(V), C
    )

    @jax.jit
    @jax.vmap
    def new(key, kernel):
        params = model.init(key)
        params["halt"]["halt"]["kernel"] *= kernel
        outputs = dx.run_all(model.steps(params), model.embed(params, TOKENS), model.depth)
        account = act_account(outputs["accumulated"])
        return jax.nn.sigmoid(outputs["halt_logit"]), account.updates, account.ponder

    found = new(jax.random.split(jax.random.key(1), 101), jnp.ones(101).at[0].set(0.0))
    for values, wanted in zip(found, (probability, steps, ponder), strict=True):
        np.testing.assert_allclose(values[0], np.full_like(values[0], wanted), atol=5e-4)
    p, updates, _ = found
    np.testing.assert_allclose(np.median(p[1:]), probability, atol=0.05)
    assert np.median(updates[1:]) == steps


def test_golden_no_row_depends_on_how_long_the_others_run():
    """Sheet, point 6: rows leave at depths of their own, in a stream and alone, with the answer of
    full depth.
    """
    model, params = made()
    params["halt"]["halt"]["kernel"] *= 3
    step, state, rule = (
        model.steps(params),
        model.embed(params, TOKENS),
        dx.criteria.gate_above(0.99),
    )
    outputs = run(model, params, TOKENS)
    wanted = act_account(outputs["accumulated"]).updates.max(axis=1)
    assert len(np.unique(wanted)) > 1 and wanted.min() < N
    stream = dx.run_stream(
        step, state, N, rule, slots=2
    )  # rows at steps of their own, side by side
    np.testing.assert_array_equal(stream.exit_depth, wanted)
    np.testing.assert_allclose(stream.output["logits"], outputs["logits"][-1], rtol=1e-4, atol=1e-4)
    for b in range(B):
        alone = dx.run_until(
            step, jax.tree.map(lambda a, b=b: a[b : b + 1], state), N, rule, "masked"
        )
        assert int(alone.exit_depth[0]) == int(wanted[b])
        np.testing.assert_allclose(
            alone.output["logits"][0], stream.output["logits"][b], rtol=1e-4, atol=1e-4
        )


def test_a_row_halts_as_a_whole_where_it_should():
    model, params = made(per="example")
    outputs = run(model, params, TOKENS)
    assert outputs["accumulated"].shape == outputs["halt_logit"].shape == (N, B)
    embedded = np.asarray(params["embed"]["embedding"])[np.asarray(TOKENS)] * np.sqrt(D)
    x = embedded + np.asarray(coordinates(jnp.arange(L)[None], jnp.array([1]), D))
    np.testing.assert_allclose(
        outputs["halt_logit"][0],
        dense(x.mean(1), params["halt"]["halt"])[:, 0],
        rtol=1e-3,
        atol=1e-3,
    )


def test_one_hot_inputs_are_tokens_and_shifted_positions_are_seen():
    model, params = made(halting="none")
    outputs = run(model, params, TOKENS)
    one_hot = run(model, params, jax.nn.one_hot(TOKENS, V))
    chex.assert_trees_all_close(one_hot, outputs, rtol=1e-4, atol=1e-4)
    positions = jnp.arange(L, dtype=jnp.int32)[None] + jnp.array([[0], [3], [0], [0], [0], [0]])
    shifted = run(model, params, {"tokens": TOKENS, "positions": positions})
    np.testing.assert_allclose(
        shifted["logits"][:, 0], outputs["logits"][:, 0], rtol=1e-4, atol=1e-4
    )
    wanted = read(steps_of(TOKENS[1], params, begin=3)[0], params)
    np.testing.assert_allclose(shifted["logits"][:, 1], wanted, rtol=1e-3, atol=1e-3)
    assert float(jnp.abs(shifted["logits"][:, 1] - outputs["logits"][:, 1]).max()) > 0.1


def test_strings_of_any_length_and_more_steps_than_it_was_made_for():
    model, params = made()
    longer, _ = made(steps=9)
    tokens = jnp.tile(TOKENS, (1, 3))
    outputs = run(longer, params, tokens)
    assert outputs["logits"].shape == (9, B, 3 * L, C)
    np.testing.assert_allclose(
        outputs["logits"][:N], run(model, params, tokens)["logits"], rtol=1e-4, atol=1e-4
    )


def test_rows_are_apart_and_the_step_is_tied():
    model, params = made()
    state = model.embed(params, TOKENS)
    dx.check_row_independence(model.steps(params), state)
    assert is_tied(model.steps(params), state)


def test_half_precision_runs_in_half_precision_and_sums_in_float32():
    model, params = made()
    half = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), params)
    for inputs in (TOKENS, jax.nn.one_hot(TOKENS, V, dtype=jnp.bfloat16)):
        state = model.embed(half, inputs)
        outputs = dx.run_all(model.steps(half), state, N)
        assert state["inner"]["h"].dtype == jnp.bfloat16 == outputs["halt_logit"].dtype
        assert outputs["accumulated"].dtype == jnp.float32 and bool(
            jnp.isfinite(outputs["logits"]).all()
        )


@pytest.mark.parametrize(
    "halting, method",
    [
        pytest.param("accumulated", act(), marks=pytest.mark.slow),
        ("basic", act()),
        pytest.param("none", pondernet(), marks=pytest.mark.slow),
    ],
)
def test_methods_train_every_parameter(halting, method):
    model, params = made(halting=halting, per="example" if halting == "none" else "position")
    labels = (TOKENS % C).at[0, 0].set(-1)
    loss = lambda p: method.objective(run(model, p, TOKENS), labels, jnp.float32(0.0))[0].mean()
    for path, slope in jax.tree_util.tree_flatten_with_path(jax.grad(loss)(params))[0]:
        assert bool(jnp.isfinite(slope).all()) and float(jnp.abs(slope).max()) > 0, (
            jax.tree_util.keystr(path)
        )


@pytest.mark.parametrize(
    "field, wrong",
    [
        ("width", {"width": 9}),
        ("width", {"width": 10, "heads": 4}),
        ("steps", {"steps": 0}),
        ("halting", {"halting": "always"}),
        ("per", {"per": "row"}),
        ("epsilon", {"epsilon": 1.0}),
        ("hidden", {"hidden": 0}),
        ("padding", {"padding": V}),
    ],
)
def test_refusals_name_the_field(field, wrong):
    with pytest.raises(ValueError, match=f"`UniversalTransformer`: {field} must"):
        made(**wrong)


@pytest.mark.parametrize(
    "inputs, error, words",
    [
        (jnp.zeros((2, 3, V + 1)), ValueError, "`inputs` must be"),
        ({"tokens": TOKENS, "positions": TOKENS[:, 1:]}, ValueError, '`inputs["positions"]`'),
        ({"tokens": TOKENS, "mask": jnp.ones((B, L + 1), bool)}, ValueError, '`inputs["mask"]`'),
        ({"tokens": TOKENS, "mask": jnp.ones((B, L))}, TypeError, '`inputs["mask"]`'),
        ({"tokens": TOKENS, "places": TOKENS}, ValueError, "`inputs` must be tokens or a dict"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_named(inputs, error, words):
    model, params = made()
    with pytest.raises(error, match=f"{re.escape(words)}"):
        model.embed(params, inputs)
