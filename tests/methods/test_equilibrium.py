"""Deep equilibrium: the loss and its gradient against long unrolled runs, the exit against a loop,
refusals.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stored

import dynexit as dx
from dynexit.methods.recurrent.equilibrium import equilibrium, one_step, steepness
from dynexit.objectives.multi_exit import multi_exit_cross_entropy
from dynexit.solvers.anderson import anderson
from dynexit.solvers.fixed_point import begin_fixed_point, fixed_point_step

B, N = 5, 60
MODEL = dx.models.Equilibrium(patch=2, width=6, steps=N).build((4, 4, 1), 3)
PARAMS = jax.jit(MODEL.init)(jax.random.key(0))
INPUTS = jnp.linspace(0.3, 3.0, B)[:, None, None, None] * jax.random.normal(
    jax.random.key(1), (B, 4, 4, 1)
)
LABELS = jnp.array([0, 1, 2, 0, 1], jnp.int32)
KEY, PROGRESS = jax.random.key(2), jnp.float32(0.5)


def unrolled_loss(params, steps, carrying):
    """Cross entropy after many plain steps, of which the last `carrying` carry the gradient."""
    state, step = MODEL.embed(params, INPUTS), MODEL.steps(params)
    again = lambda z, count: jax.lax.scan(
        lambda z, _: (one_step(step, state, z), None), z, length=count
    )[0]
    z = state["z"]
    if carrying < steps:
        z = jax.lax.stop_gradient(again(z, steps - carrying))
    z = again(z, carrying)
    logits = step.apply(params, jnp.int32(0), {**state, "z": z})[1]["logits"]
    return multi_exit_cross_entropy(logits[None], LABELS)[0].mean()


def loss_of(method, model=MODEL):
    return lambda params: method.loss(model, params, INPUTS, LABELS, KEY, PROGRESS)[0].mean()


def evaluated(method, model=MODEL):
    return jax.jit(lambda params: method.loss(model, params, INPUTS, LABELS, KEY, PROGRESS))(PARAMS)


def assert_near(found, wanted, tolerance):
    """Each leaf, relative to the largest entry of that leaf."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert float(jnp.abs(a - b).max()) < tolerance * float(jnp.abs(b).max())


def distance(a, b):
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    return np.linalg.norm(flat(a) - flat(b)) / np.linalg.norm(flat(b))


WHOLE = jax.jit(jax.value_and_grad(lambda p: unrolled_loss(p, 45, 45)))(PARAMS)


@pytest.mark.parametrize("mixing", [None, anderson(4)], ids=["plain", "anderson"])
def test_the_implicit_gradient_is_that_of_the_whole_run(mixing):
    model = dx.models.Equilibrium(patch=2, width=6, steps=N).build((4, 4, 1), 3, mixing=mixing)
    loss, found = jax.jit(jax.value_and_grad(loss_of(equilibrium(1e-5, mixing=mixing), model)))(
        PARAMS
    )
    assert float(loss) == pytest.approx(float(WHOLE[0]), abs=1e-4)
    assert_near(found, WHOLE[1], 5e-3)


def test_the_phantom_gradient_is_that_of_the_last_steps():
    found = {k: jax.jit(jax.grad(loss_of(equilibrium(1e-5, unrolled=k))))(PARAMS) for k in (1, 4)}
    for k in (1, 4):  # the step that is read is one of the k
        assert_near(
            found[k], jax.jit(jax.grad(lambda p, k=k: unrolled_loss(p, 45, k - 1)))(PARAMS), 5e-3
        )
    errors = [distance(found[k], WHOLE[1]) for k in (1, 4)]
    assert errors[0] > 0.02 and errors[1] < errors[0] / 3


def test_the_adjoint_is_mixed_as_the_model_is():
    """f has the slope -1.3: the plain iteration runs away, and so does the adjoint's."""
    f = lambda p, x, z: -1.3 * z + p["a"] * x
    head = lambda p, z: jnp.stack([z[:, 0], -z[:, 0]], axis=-1)
    mixing = anderson(5)
    model = dx.Model(
        lambda key: None,
        lambda p, x: begin_fixed_point(x, jnp.zeros_like(x), mixing),
        lambda p: fixed_point_step(f, head, p, mixing),
        20,
        ("z",) * 20,
    )
    x, labels = jnp.array([[0.4], [1.1]]), jnp.array([1, 1], jnp.int32)
    run = lambda a, method: method.loss(model, {"a": a}, x, labels, KEY, PROGRESS)[0].mean()
    wanted = jax.grad(
        lambda a: multi_exit_cross_entropy(head(None, a * x / 2.3)[None], labels)[0].mean()
    )(jnp.float32(0.7))
    found = jax.grad(run)(jnp.float32(0.7), equilibrium(1e-5, mixing=mixing))
    np.testing.assert_allclose(found, wanted, rtol=1e-3)
    with pytest.raises(
        ValueError,
        match="`mixing` must be the one that `begin_fixed_point` was given for this state",
    ):
        run(jnp.float32(0.7), equilibrium(1e-5))


def test_metrics_are_those_of_a_loop():
    tolerance = 3e-3
    _, metrics = evaluated(equilibrium(tolerance))
    outputs = jax.jit(lambda p: dx.run_all(MODEL.steps(p), MODEL.embed(p, INPUTS), N))(PARAMS)
    residuals = np.asarray(outputs["residual"])
    exits = [next(e for e in range(N) if residuals[e, b] < tolerance) for b in range(B)]
    assert len(set(exits)) > 1
    oracle = {
        "steps": np.mean(exits) + 1,
        "residual": residuals[exits, np.arange(B)].mean(),
        "converged": 1.0,
        "accuracy": np.mean(
            [outputs["logits"][exits[b] + 1, b].argmax() == LABELS[b] for b in range(B)]
        ),
    }
    for name, value in oracle.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-2, err_msg=name)
        assert metrics[name].dtype == jnp.float32 and metrics[name].shape == ()
    short = dx.models.Equilibrium(patch=2, width=6, steps=2).build((4, 4, 1), 3)
    _, metrics = evaluated(equilibrium(tolerance), short)
    assert metrics["converged"] == 0 and metrics["steps"] == 2


def test_the_penalty_estimates_the_jacobian():
    state, step = MODEL.embed(PARAMS, INPUTS), MODEL.steps(PARAMS)
    z = jax.random.normal(jax.random.key(3), state["z"].shape)
    alone = lambda b, z: one_step(step, jax.tree.map(lambda a: a[b : b + 1], state), z[None])[0]
    exact = [
        float((jax.jacobian(lambda z, b=b: alone(b, z))(z[b]) ** 2).sum()) / z[b].size
        for b in range(B)
    ]
    keys = jax.random.split(jax.random.key(4), 800)
    estimate = jax.jit(jax.vmap(lambda key: steepness(step, state, z, key)))(keys).mean(0)
    np.testing.assert_allclose(estimate, exact, rtol=0.1)
    with_penalty, metrics = evaluated(equilibrium(jacobian=0.5))
    without, _ = evaluated(equilibrium())
    np.testing.assert_allclose(
        (with_penalty - without).mean(), 0.5 * metrics["jacobian"], rtol=1e-4
    )


def test_candidates_go_from_few_steps_to_full_depth():
    method = equilibrium()
    outputs = dx.run_all(MODEL.steps(PARAMS), MODEL.embed(PARAMS, INPUTS), N)
    found = stored.curve_of(method, outputs, LABELS, np.arange(1.0, N + 1))
    assert found.mean_depth[0] == N and found.mean_depth[-1] < 3
    assert (np.diff(found.mean_depth[1:]) <= 0).all() and len(set(found.mean_depth.tolist())) > 10


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"tolerance": -1.0}, "`tolerance` must be at least 0, got -1.0"),
        ({"jacobian": -0.1}, "`jacobian` must be at least 0, got -0.1"),
        ({"unrolled": -1}, "`unrolled` must be at least 0, got -1"),
        (
            {"damping": 1.0},
            "`damping` must be at least 0 and below 1, and 0 with `unrolled` below 2, got 1.0",
        ),
        ({"damping": 0.5, "unrolled": 1}, "and 0 with `unrolled` below 2, got 0.5 with 1"),
        (
            {"tolerance_back": -5.0},
            "`tolerance_back` must be at least 0, and None with `unrolled`, got -5.0 with 0",
        ),
        ({"tolerance_back": 1e-3, "unrolled": 2}, "and None with `unrolled`, got 0.001 with 2"),
        ({"thresholds": [-0.1]}, "`thresholds` must have shape [K] and be at least 0"),
    ],
)
def test_refusals(arguments, text):
    with pytest.raises(ValueError) as error:
        equilibrium(**arguments)
    assert text in str(error.value)


def test_stages_are_refused():
    model = dx.models.Resnet(channels=(4, 8), blocks=(1, 1)).build((8, 8, 1), 3)
    with pytest.raises(ValueError, match="`model` must be one weight-tied step, got 2 stages"):
        equilibrium().loss(model, None, None, LABELS, KEY, PROGRESS)
