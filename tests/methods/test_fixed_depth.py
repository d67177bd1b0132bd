"""The plain network: no gradient from inner exits, no row before the last one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import stored

import dynexit as dx
from dynexit.core.cost import flops_of
from dynexit.engine.replay import replay
from dynexit.methods.exits.fixed_depth import fixed_depth

LOGITS = jax.random.normal(jax.random.key(0), (4, 6, 3))
LABELS = jax.random.randint(jax.random.key(1), (6,), 0, 3)
PROGRESS = jnp.float32(0.0)


def test_the_loss_is_the_last_exit_s():
    loss, metrics = fixed_depth().objective({"logits": LOGITS}, LABELS, PROGRESS)
    np.testing.assert_allclose(
        loss, optax.softmax_cross_entropy_with_integer_labels(LOGITS[-1], LABELS), rtol=1e-5
    )
    wanted = [(LOGITS[e].argmax(-1) == LABELS).mean() for e in (0, -1)]
    np.testing.assert_allclose(
        [metrics["accuracy_exit_first"], metrics["accuracy_exit_last"]], wanted, rtol=1e-6
    )
    slope = jax.grad(lambda z: fixed_depth().objective(z, LABELS, PROGRESS)[0].sum())(LOGITS)
    assert not slope[:-1].any() and (jnp.abs(slope[-1]).sum(axis=-1) > 0).all()


def test_the_one_point_is_full_depth():
    method = fixed_depth()
    points = stored.curve_of(method, {"logits": LOGITS}, LABELS, np.arange(1.0, 5)).points
    assert points["depth"].tolist() == [4]
    halted = replay(method.criterion(jax.tree.map(lambda a: a[0], points)), LOGITS * 100)
    assert halted.exit_depth.tolist() == [4] * 6


def test_training_computes_the_last_exit_alone():
    model = dx.models.CausalLM(width=16, depth=4, heads=2).build(dx.Tokens(500), 500)
    params, tokens = model.init(jax.random.key(0)), jnp.arange(12).reshape(2, 6)

    def of_all(params):
        outputs = dx.run_all(model.steps(params), model.embed(params, tokens), model.depth)
        return fixed_depth().objective(outputs, tokens, PROGRESS)

    def of_last(params):
        return fixed_depth().loss(model, params, tokens, tokens, jax.random.key(1), PROGRESS)

    (loss, metrics), (wanted, all_metrics) = jax.jit(of_last)(params), jax.jit(of_all)(params)
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    assert metrics == {"accuracy_exit_last": all_metrics["accuracy_exit_last"]}
    assert flops_of(of_last, params) < 0.5 * flops_of(of_all, params)
