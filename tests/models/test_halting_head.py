"""PALBERT's halting head on the recurrent cell: against its equations, and without a way back into
the body.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.objectives.ponder import geometric_last, kl_posterior_prior, log_halting

INPUTS, CLASSES, WIDTH, STEPS, ROWS = 5, 3, 6, 4, 3


def made(**options):
    model = dx.models.Gru(width=WIDTH, steps=STEPS, **options).build((INPUTS,), CLASSES)
    draw = np.random.default_rng(1)
    scatter = lambda a: np.asarray(a) + np.float32(0.3) * draw.standard_normal(a.shape, np.float32)
    return model, jax.tree.map(scatter, model.init(jax.random.key(0)))


def outputs_of(model, params, x):
    return dx.run_all(model.steps(params), model.embed(params, x), model.depth)


X = np.asarray(jax.random.normal(jax.random.key(2), (ROWS, INPUTS)))


@pytest.mark.parametrize("reads", ["state", "concat", "diff"])
@pytest.mark.parametrize("layers", [0, 2])
def test_the_halting_logit_is_its_equation(reads, layers):
    model, params = made(halt_reads=reads, halt_layers=layers)
    outputs, p = outputs_of(model, params, X), params["head"]
    step = dx.tied_step(
        lambda p, s: model.steps(params).apply(p, 0, s)[0], lambda p, s: s["h"], params
    )
    states = np.concatenate(
        [np.zeros((1, ROWS, WIDTH)), dx.run_all(step, model.embed(params, X), STEPS)]
    )
    for n in range(1, STEPS + 1):
        for b in range(ROWS):
            now, before = states[n, b], states[n - 1, b]
            u = {"state": now, "concat": np.concatenate([now, before]), "diff": now - before}[reads]
            for k in range(layers):
                u = np.tanh(u @ p[f"halt_hidden{k}"]["kernel"] + p[f"halt_hidden{k}"]["bias"])
            wanted = u @ p["halt"]["kernel"] + p["halt"]["bias"]
            np.testing.assert_allclose(
                outputs["halt_logit"][n - 1, b], wanted[0], rtol=1e-4, atol=1e-5
            )
            np.testing.assert_allclose(
                outputs["logits"][n - 1, b],
                now @ p["logits"]["kernel"] + p["logits"]["bias"],
                rtol=1e-4,
                atol=1e-5,
            )


@pytest.mark.parametrize("reads", ["state", "concat"])
def test_golden_a_detached_head_sends_nothing_into_the_body(reads):
    def slopes(detach):
        model, params = made(halt_reads=reads, halt_layers=1, halt_detach=detach)
        prior = geometric_last(STEPS, 0.3)
        kl = lambda params: kl_posterior_prior(
            log_halting(outputs_of(model, params, X)["halt_logit"]), prior
        ).sum()
        slope = jax.grad(kl)(params)
        largest = lambda tree: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))
        return largest(slope["block"]), largest(slope["head"]["halt"])

    body, head = slopes(True)
    assert body == 0.0 and head > 1e-3
    body, head = slopes(False)
    assert body > 1e-3 and head > 1e-3


def test_a_detached_head_changes_no_value_and_the_answers_still_train_the_body():
    (free, params), (detached, _) = made(), made(halt_detach=True)
    chex.assert_trees_all_equal(outputs_of(free, params, X), outputs_of(detached, params, X))
    slope = jax.grad(lambda p: outputs_of(detached, p, X)["logits"].sum())(params)
    assert float(jnp.abs(slope["block"]["cell"]["in"]["kernel"]).max()) > 1e-3


def test_the_bias_is_where_the_logit_begins():
    for bias in (0.0, -1.0):
        params = (
            dx.models.Gru(width=WIDTH, steps=STEPS, halt_bias=bias)
            .build((INPUTS,), CLASSES)
            .init(jax.random.key(0))
        )
        assert params["head"]["halt"]["bias"].tolist() == [bias]


@pytest.mark.parametrize(
    "field, wrong", [("halt_reads", "both"), ("halt_layers", -1), ("halting", "always")]
)
def test_refusals(field, wrong):
    with pytest.raises(ValueError, match=f"`Gru`: {field} must"):
        made(**{field: wrong})
