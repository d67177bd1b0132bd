"""The decoder-only transformer: the cached form against whole sequences, masks, segments."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.models.language.decoder import TransformerDecoder

FORMS = {
    "llama": {"kv_heads": 2},
    "gpt2": dict(
        norm="layer", gated=False, activation="gelu_tanh", positions="learned", context=16,
        qkv_bias=True, out_bias=True, mlp_bias=True,
    ),
    "gemma": dict(
        kv_heads=1, window=5, sliding=(True, False, True), qk_norm=True, post_norms=True,
        norm_offset=True, attention_cap=5.0, logits_cap=3.0, embed_scale=4.0, tied=False,
        sliding_rope_base=100.0, rope_scaling=dx.models.RopeScaling("llama3", 8.0, context=8),
    ),
}  # fmt: skip


def made(form):
    settings = dx.models.CausalLM(width=16, depth=3, heads=4, **FORMS[form])
    model = settings.build(dx.Tokens(30), 30)
    params = model.init(jax.random.key(0))
    noise = lambda a: a + 0.1 * jax.random.normal(jax.random.key(a.size), a.shape)
    return model, jax.tree.map(noise, params)


@pytest.mark.parametrize("form", FORMS)
def test_the_cached_form_equals_the_whole_sequence(form):
    model, params = made(form)
    decoder: TransformerDecoder = model.decoder
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, 30)
    whole = dx.run_all(model.steps(params), model.embed(params, tokens), 3)
    weights = decoder.unstack(params)
    cache, start = decoder.empty(weights, 3, 12), 0
    rows = jnp.array([2, 0])
    for size in (4, 1, 1, 3):  # several tokens at once, and one by one
        positions = jnp.broadcast_to(jnp.arange(start, start + size), (2, size))
        state = decoder.embed(weights, tokens[:, start : start + size], positions)
        for exit in range(3):
            state, cache = decoder.blocks(weights, exit, exit + 1, state, positions, cache, rows)
            wanted = whole["logits"][exit, :, start : start + size]
            chex.assert_trees_all_close(decoder.logits(weights, state), wanted, atol=2e-5)
        start += size


def test_fill_writes_the_keys_and_values_that_a_block_would():
    model, params = made("llama")
    decoder, weights = model.decoder, model.decoder.unstack(params)
    tokens, positions = jnp.array([[3, 4]]), jnp.array([[0, 1]])
    state = decoder.embed(weights, tokens, positions)
    _, ran = decoder.blocks(weights, 0, 1, state, positions, decoder.empty(weights, 1, 4))
    filled = decoder.fill(weights, 0, 3, state, positions, decoder.empty(weights, 1, 4))
    chex.assert_trees_all_equal(filled[0], ran[0])
    assert float(jnp.abs(filled[2][0]).max()) > 0


def test_padded_places_are_not_attended_to():
    model, params = made("llama")
    run = lambda inputs: dx.run_full(model.steps(params), model.embed(params, inputs), 3)[1]
    tokens = jnp.array([[5, 6, 7, 0]])
    mask = jnp.array([[True, True, True, False]])
    output = run({"tokens": tokens, "mask": mask})
    other = run({"tokens": tokens.at[0, 3].set(9), "mask": mask})
    chex.assert_trees_all_equal(output["logits"][:, :3], other["logits"][:, :3])
    assert "mask" in output


def test_a_row_padded_on_the_left_has_the_logits_of_the_row_alone():
    """With learned positions too: the first real token is at position 0."""
    model, params = made("gpt2")
    run = lambda inputs: dx.run_full(model.steps(params), model.embed(params, inputs), 3)[1]
    mask = jnp.array([[False, False, True, True]])
    padded = run({"tokens": jnp.array([[0, 0, 5, 6]]), "mask": mask})["logits"][:, 2:]
    chex.assert_trees_all_close(padded, run(jnp.array([[5, 6]]))["logits"], atol=1e-5)


def test_segments_are_independent_documents():
    model, params = made("gemma")
    run = lambda inputs: dx.run_full(model.steps(params), model.embed(params, inputs), 3)[1]
    packed = {"tokens": jnp.array([[5, 6, 7, 8, 9]]), "segments": jnp.array([[0, 0, 1, 1, 1]])}
    logits = run(packed)["logits"]
    chex.assert_trees_all_close(logits[:, :2], run(jnp.array([[5, 6]]))["logits"], atol=1e-5)
    chex.assert_trees_all_close(logits[:, 2:], run(jnp.array([[7, 8, 9]]))["logits"], atol=1e-5)


def test_the_context_is_a_limit():
    model, params = made("gpt2")
    with pytest.raises(ValueError, match="at most 16 tokens"):
        model.embed(params, jnp.zeros((1, 17), jnp.int32))


@pytest.mark.parametrize(
    "fields",
    [dict(kv_heads=3), dict(width=30), dict(sliding=(True,)), dict(window=0), dict(rope_base=0.0)],
)
def test_invalid_settings_name_the_field(fields):
    settings = dx.models.CausalLM(**{"width": 32, "heads": 4, **fields})
    with pytest.raises(ValueError, match=next(iter(fields))):
        settings.build(dx.Tokens(10), 10)


def test_llama3_frequencies():
    """Between the limits the ramp joins both ends; golden numbers of the released formula."""
    from dynexit.models.language.frequencies import scaled

    rates = np.array([1.0, 0.01, 0.003, 0.0005], np.float32)
    scaling = dx.models.RopeScaling("llama3", 8.0, 1.0, 4.0, 2048)
    turns = 2048 * 0.003 / (2 * np.pi)
    assert turns < 1 < 2048 * 0.01 / (2 * np.pi) < 4
    ramp = (2048 * 0.01 / (2 * np.pi) - 1) / 3
    wanted = [1.0, 0.01 * (ramp + (1 - ramp) / 8), 0.003 / 8, 0.0005 / 8]
    np.testing.assert_allclose(scaled(rates, scaling), wanted, rtol=1e-6)
