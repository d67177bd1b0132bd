"""Balcony: the heads of a frozen language model, their loss, and drafting with them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.decoding import EarlyExit, generate

V = 20
TRUNK = dx.models.CausalLM(width=16, depth=3, heads=2)
MODEL = dx.models.Balcony(TRUNK, exits=(1, 2)).build(dx.Tokens(V), V)
PARAMS = MODEL.init(jax.random.key(0))
TOKENS = jax.random.randint(jax.random.key(1), (2, 7), 0, V)
LABELS = jnp.roll(TOKENS, -1, axis=1).at[:, -1].set(-1)
METHOD = dx.methods.Balcony().build()
RUN = lambda params: dx.run_all(MODEL.steps(params), MODEL.embed(params, TOKENS), MODEL.depth)


def test_the_last_exit_is_the_trunk():
    trunk = TRUNK.build(dx.Tokens(V), V)
    step, state = trunk.steps(PARAMS["trunk"]), trunk.embed(PARAMS["trunk"], TOKENS)
    whole = dx.run_all(step, state, 3)
    found = RUN(PARAMS)
    assert found["logits"].shape == (3, 2, 7, V)
    chex.assert_trees_all_close(found["logits"][-1], whole["logits"][-1], atol=1e-6)


def test_a_new_head_before_the_last_block_is_the_whole_model():
    """The head is a copy of the last block, whose input is the state before it."""
    found = RUN(PARAMS)["logits"]
    chex.assert_trees_all_close(found[1], found[2], atol=1e-6)
    assert float(jnp.abs(found[0] - found[2]).max()) > 1e-3


def test_the_loss_is_the_divergence_of_all_logits():
    loss, metrics = METHOD.loss(MODEL, PARAMS, TOKENS, LABELS, jax.random.key(0), jnp.float32(0))
    log_p = jax.nn.log_softmax(RUN(PARAMS)["logits"])
    kl = (jnp.exp(log_p[-1:]) * (log_p[-1:] - log_p[:-1])).sum(-1).mean(0)
    chex.assert_trees_all_close(loss, kl[:, :-1].mean(1), atol=1e-6)
    same = (log_p[:-1].argmax(-1) == log_p[-1:].argmax(-1)).mean(0)
    np.testing.assert_allclose(metrics["agreement"], same[:, :-1].mean(), atol=1e-6)


def test_every_head_gets_a_gradient_and_the_trunk_none():
    mean = lambda p: METHOD.loss(MODEL, p, TOKENS, LABELS, jax.random.key(0), jnp.float32(0))[
        0
    ].mean()
    gradient = jax.grad(mean)(PARAMS)
    assert all(float(jnp.abs(a).max()) == 0 for a in jax.tree.leaves(gradient["trunk"]))
    first = gradient["heads"]["exit01"]
    assert all(float(jnp.abs(a).max()) > 0 for a in jax.tree.leaves(first))


def test_a_head_drafts_for_the_trunk():
    params = PARAMS | {
        "trunk": PARAMS["trunk"] | {"embed": {"tokens": 30 * PARAMS["trunk"]["embed"]["tokens"]}}
    }
    head = dx.models.language.draft_head(params, 2)
    draft = EarlyExit(2, 2, head=head)
    drafted = generate(MODEL, params["trunk"], [[1, 2, 3]], 8, draft=draft)
    plain = generate(MODEL, params["trunk"], [[1, 2, 3]], 8)
    assert drafted.tokens[0].tolist() == plain.tokens[0].tolist()
    assert drafted.accepted[0] == drafted.drafted[0] > 0  # block 3 twice is what the head computes


@pytest.mark.refuses
@pytest.mark.parametrize("exits", [(), (3,), (2, 1), (0,)])
def test_invalid_exits_are_named(exits):
    with pytest.raises(ValueError, match="exits"):
        dx.models.Balcony(TRUNK, exits=exits).build(dx.Tokens(V), V)
    with pytest.raises(ValueError, match="exit01, exit02, got 5"):
        dx.models.language.draft_head(PARAMS, 5)


def test_the_trunk_is_read_from_a_folder(tmp_path):
    trunk = PARAMS["trunk"]
    folder = dx.models.language.to_hf(tmp_path / "trunk", TRUNK, trunk)
    model = dx.models.Balcony(exits=(1, 2), folder=str(folder)).build(dx.Tokens(V), V)
    params = model.init(jax.random.key(5))
    chex.assert_trees_all_equal(params["trunk"], trunk)
    assert model.depth == MODEL.depth and sorted(params["heads"]) == ["exit01", "exit02"]
    with pytest.raises(ValueError, match="exits"):
        dx.models.Balcony(exits=(3,), folder=str(folder)).build(dx.Tokens(V), V)
