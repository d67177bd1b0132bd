"""Padding changes no answer of a row, and delays no row."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx

V, C, L, B = 7, 5, 6, 3
TOKENS = jax.random.randint(jax.random.key(1), (B, L), 0, V - 1)
PAD = V - 1
MODELS = {
    "universal": dx.models.UniversalTransformer(
        width=8, heads=2, steps=4, halt_bias=-1.0, padding=PAD
    ),
    "universal, by row": dx.models.UniversalTransformer(
        width=8, heads=2, steps=4, halting="none", per="example", padding=PAD
    ),
    "recurrent depth": dx.models.RecurrentDepth(width=8, heads=2, steps=3, padding=PAD),
    "rnn": dx.models.Rnn(width=8, padding=PAD),
}
FIXED = {
    "attention": dx.models.Recursive(
        width=8, segments=2, inner=1, cycles=2, layers=1, mixing="attention", heads=2
    ),
    "mlp": dx.models.Recursive(width=8, segments=2, inner=1, cycles=1, layers=2),
}


def built(settings, length=None):
    tied = isinstance(settings, dx.models.RecurrentDepth)
    model = settings.build(dx.Tokens(V, length), V if tied else C)
    draw = np.random.default_rng(0)
    noise = lambda a: 0.2 * draw.standard_normal(a.shape).astype(np.float32)
    return model, jax.tree.map(lambda a: a + noise(a), model.init(jax.random.key(0)))


def run(model, params, inputs):
    outputs = jax.jit(lambda p, x: dx.run_all(model.steps(p), model.embed(p, x), model.depth))
    return outputs(params, inputs)


def halting_of(outputs):
    """What rows exit by."""
    names = "halt_logit", "accumulated", "gate", "residual", "change"
    return {name: outputs[name] for name in names if name in outputs}


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_padding_behind_a_row_changes_nothing(settings):
    model, params = built(settings)
    alone = run(model, params, TOKENS)
    for more in (1, 5):
        padded = run(model, params, jnp.pad(TOKENS, ((0, 0), (0, more)), constant_values=PAD))
        mask = np.broadcast_to(np.arange(L + more) < L, (len(alone["mask"]), B, L + more))
        np.testing.assert_array_equal(padded["mask"], mask)
        np.testing.assert_allclose(
            padded["logits"][:, :, :L], alone["logits"], rtol=1e-4, atol=1e-5
        )
        for name, value in halting_of(padded).items():
            places = value[..., :L] if value.ndim == 3 else value
            np.testing.assert_allclose(places, alone[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["universal", "recurrent depth"])
def test_padding_before_a_row_changes_nothing(name):
    """With the positions of the real places where they are not relative."""
    model, params = built(MODELS[name])
    alone = run(model, params, TOKENS)
    padded = jnp.pad(TOKENS, ((0, 0), (2, 0)), constant_values=PAD)
    if name == "universal":
        positions = jnp.broadcast_to(jnp.arange(-2, L, dtype=jnp.int32), padded.shape)
        padded = {"tokens": padded, "positions": positions}
    found = run(model, params, padded)["logits"][:, :, 2:]
    np.testing.assert_allclose(found, alone["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
def test_a_mask_is_the_same_as_a_padding_token(settings):
    model, params = built(settings)
    unset, _ = built(dataclasses.replace(settings, padding=None))
    tokens = TOKENS.at[0, 4:].set(PAD)
    masked = run(unset, params, {"tokens": tokens, "mask": tokens != PAD})
    chex.assert_trees_all_equal(masked, run(model, params, tokens))
    plain = run(unset, params, tokens)
    assert not isinstance(plain, dict) or "mask" not in plain


@pytest.mark.parametrize("settings", FIXED.values(), ids=FIXED)
def test_tokens_at_padded_places_are_not_read(settings):
    """Of a model with a fixed number of places: the halting logit and the change included."""
    model, params = built(settings, L)
    mask = jnp.arange(L)[None] < jnp.array([[4], [6], [1]])
    some = run(model, params, {"tokens": TOKENS, "mask": mask})
    others = {"tokens": jnp.where(mask, TOKENS, PAD), "mask": mask}
    other = run(model, params, others)
    real = np.asarray(mask)
    np.testing.assert_array_equal(some["logits"][:, real], other["logits"][:, real])
    for name in ("halt_logit", "change", "mask"):
        np.testing.assert_array_equal(some[name], other[name])
    unmasked = run(model, params, TOKENS)["logits"]
    assert np.abs(unmasked[:, real] - some["logits"][:, real]).max() > 1e-4


@pytest.mark.parametrize("name", ["universal", "recurrent depth"])
def test_rows_of_several_lengths_exit_as_they_do_alone(name):
    model, params = built(MODELS[name])
    lengths = np.array([2, 6, 4])
    tokens = jnp.where(jnp.arange(L)[None] < lengths[:, None], TOKENS, PAD)
    gate = dx.criteria.gate_above(0.9)
    rule = gate if name == "universal" else dx.criteria.residual_below(0.3)
    steps = model.steps(params)
    together = dx.run_until(steps, model.embed(params, tokens), model.depth, rule, "masked")
    for b, length in enumerate(lengths):
        state = model.embed(params, tokens[b : b + 1, :length])
        alone = dx.run_until(steps, state, model.depth, rule, "masked")
        assert int(alone.exit_depth[0]) == int(together.exit_depth[b])
        found = together.output["logits"][b, :length]
        np.testing.assert_allclose(found, alone.output["logits"][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("executor", ["masked", "compacted", "stream"])
def test_the_engine_takes_a_mask(executor):
    model, params = built(MODELS["universal"])
    state = model.embed(params, TOKENS.at[1, 2:].set(PAD))
    steps, rule = model.steps(params), dx.criteria.gate_above(0.9)
    if executor == "stream":
        exits = dx.run_stream(steps, state, model.depth, rule, slots=2)
    else:
        exits = dx.run_until(steps, state, model.depth, rule, executor)
    wanted = dx.replay(rule, dx.run_all(steps, state, model.depth))
    np.testing.assert_array_equal(exits.exit, wanted.exit)
    np.testing.assert_array_equal(exits.output["mask"], state["inner"]["mask"])


@pytest.mark.parametrize("settings", [*MODELS.values(), FIXED["attention"]], ids=str)
def test_a_row_of_padding_has_finite_gradients(settings):
    model, params = built(settings, L)
    inputs = {"tokens": TOKENS, "mask": jnp.arange(L)[None] < jnp.array([[0], [6], [3]])}

    def loss(p):
        outputs = dx.run_all(model.steps(p), model.embed(p, inputs), model.depth)
        return sum(o.sum() for o in jax.tree.leaves(outputs) if o.dtype == jnp.float32)

    slopes = jax.jit(jax.grad(loss))(params)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(slopes))
