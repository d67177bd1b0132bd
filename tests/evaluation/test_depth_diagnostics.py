"""Depth diagnostics of hand-made models whose answers are known, and of a transformer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.evaluation import depth_diagnostics, depth_table, proposed_exits

V = 4


class Identity:
    """A decoder whose logits are the state."""

    def logits(self, weights, state):
        return state


def model_of(*blocks):
    """One-hot embeddings of V tokens, and blocks that are functions of the state."""
    apply = lambda w, i, h: (jax.lax.switch(i, blocks, h),) * 2
    steps = lambda params: dx.Step(lambda i: None, apply)
    names = tuple(f"block{n}" for n in range(len(blocks)))
    embed = lambda params, tokens: jax.nn.one_hot(tokens, V)
    return dx.Model(lambda key: {}, embed, steps, len(blocks), names, Identity())


def scaled(factor):
    return lambda h: h + factor * h


def shifted(h):  # the next token, far above the present one
    return h + 9 * jnp.roll(jnp.sign(h), 1, axis=-1)


def batch_of(tokens, labels=None):
    tokens = jnp.asarray(tokens)
    return {"inputs": tokens, "labels": tokens if labels is None else jnp.asarray(labels)}


def nats_of(own, other=0.0):
    """-ln p of a logit beside V - 1 others."""
    return np.log(np.exp(own) + (V - 1) * np.exp(other)) - own


def test_blocks_that_scale_the_state():
    model = model_of(scaled(1.0), scaled(-0.5), scaled(0.0))
    found = depth_diagnostics(model, {}, [batch_of([[0, 1, 2], [3, 0, 1]])])
    np.testing.assert_allclose(found.contribution, [1, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose(found.cosine, [1, -1, 0], atol=1e-6)
    np.testing.assert_allclose(found.nats, [nats_of(2), nats_of(1), nats_of(1)], rtol=1e-5)
    np.testing.assert_allclose(
        found.skip_nats, [nats_of(0.5) - nats_of(1), nats_of(2) - nats_of(1), 0], atol=1e-6
    )
    assert found.agreement.tolist() == found.skip_agreement.tolist() == [1, 1, 1]
    assert found.settled_depth == 1 and found.tokens == 6 and proposed_exits(found) == (1,)
    p, q = (np.exp([x, 0, 0, 0]) / (np.exp(x) + 3) for x in (2, 1))
    np.testing.assert_allclose(found.divergence, [(p * np.log(p / q)).sum(), 0, 0], atol=1e-6)


def test_a_block_that_decides_the_token():
    model = model_of(scaled(0.1), shifted, scaled(0.1))
    found = depth_diagnostics(model, {}, [batch_of([[0, 1, 2]])])
    assert found.agreement.tolist() == [0, 1, 1] and found.settled_depth == 2
    assert found.skip_agreement.tolist() == [1, 0, 1] and proposed_exits(found) == (2,)
    assert found.skip_nats[1] < -5  # the labels are the tokens before the shift
    late = depth_diagnostics(model_of(scaled(0.1), shifted), {}, [batch_of([[0, 1]])])
    assert proposed_exits(late) == ()


def test_a_prediction_that_returns_is_settled_when_it_returns():
    back = lambda h: h - 9 * jnp.sign(jnp.maximum(h - 5, 0))
    model = model_of(scaled(0.0), shifted, back)
    found = depth_diagnostics(model, {}, [batch_of([[0, 1, 2]])])
    assert found.agreement.tolist() == [1, 0, 1] and found.settled_depth == 3


@pytest.mark.slow
def test_sums_of_batches_are_the_sums_of_one_batch():
    build = lambda depth: dx.models.CausalLM(width=8, depth=depth, heads=2).build(dx.Tokens(V), V)
    model = build(2)
    params = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (4, 6), 0, V)
    labels = tokens.at[0, 2:].set(-1)
    whole = depth_diagnostics(model, params, [batch_of(tokens, labels)])
    parts = [batch_of(tokens[k : k + 2], labels[k : k + 2]) for k in (0, 2)]
    apart = depth_diagnostics(model, params, parts)
    assert whole.tokens == apart.tokens == 20
    for a, b in zip(whole, apart, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    hidden = dx.run_all(model.steps(params), model.embed(params, tokens), 2)["hidden"]
    first = model.embed(params, tokens)["h"]
    inner = np.asarray(labels >= 0) & (np.arange(6) > 0)
    ratio = np.linalg.norm(hidden[0] - first, axis=-1) / np.linalg.norm(first, axis=-1)
    assert whole.contribution[0] == pytest.approx(ratio[inner].mean(), rel=1e-5)
    without_first = {**params, "blocks": jax.tree.map(lambda a: a[1:], params["blocks"])}
    logits = dx.run_all(build(1).steps(without_first), model.embed(params, tokens), 1)["logits"][0]
    log_p = np.asarray(jax.nn.log_softmax(logits))
    nats = -np.take_along_axis(log_p, np.maximum(labels, 0)[..., None], -1)[..., 0]
    nats = nats[np.asarray(labels) >= 0].mean()
    assert whole.skip_nats[0] + whole.nats[-1] == pytest.approx(nats, rel=1e-5)
    assert depth_table(whole).count("\n") == 5


@pytest.mark.refuses
def test_what_does_not_fit_is_refused():
    model = model_of(shifted)
    with pytest.raises(ValueError, match="`batches` must hold a token"):
        depth_diagnostics(model, {}, [])
    with pytest.raises(TypeError, match="`model` must have a decoder"):
        depth_diagnostics(model._replace(decoder=None), {}, [])
    recurrent = dx.models.RecurrentDepth(width=8, heads=2, steps=2).build(dx.Tokens(9), 9)
    with pytest.raises(TypeError, match="logits of every state"):
        depth_diagnostics(recurrent, {}, [])
    found = depth_diagnostics(model, {}, [batch_of([[0, 1]])])
    with pytest.raises(ValueError, match="`levels` must lie in"):
        proposed_exits(found, [2.0])
