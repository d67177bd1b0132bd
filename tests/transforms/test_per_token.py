"""Depth by place against a loop over places, with the others looking on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.transforms.per_token import per_token

B, L, D, N = 5, 4, 6, 12
W = 0.9 * jax.random.orthogonal(jax.random.key(0), D)
H = jax.random.normal(jax.random.key(1), (B, L, D)) * jnp.linspace(0.2, 2.0, B)[:, None, None]


def block(w, state):
    """Every place sees the mean of its row."""
    h = state["h"]
    return {"h": jnp.tanh(h @ w + 0.3 * h.mean(axis=1, keepdims=True)) * 0.9}


STEP = dx.tied_step(block, lambda w, state: state["h"][..., :3], W)
RULE = dx.criteria.divergence_below(2e-3)


def oracle(h):
    """One row, place by place; a place that has left keeps its state and its answer."""
    h, places = np.array(h), len(h)
    before, answer, steps, alive = (
        None,
        np.zeros((places, 3)),
        np.zeros(places, int),
        np.ones(places, bool),
    )
    while alive.any() and steps.max() < N:
        new = np.asarray(block(W, {"h": jnp.asarray(h)[None]})["h"][0])
        h[alive] = new[alive]
        log_p = np.asarray(jax.nn.log_softmax(jnp.asarray(new[:, :3])))
        steps[alive] += 1
        answer[alive] = new[alive][:, :3]
        if before is not None:
            still = (np.exp(before) * (before - log_p)).sum(-1) < 2e-3
            before[alive] = log_p[alive]
            alive = alive & ~still
        else:
            before = log_p.copy()
    return answer, steps, steps.max()


@pytest.mark.parametrize("executor", ["compacted", "masked", "per_row", "stream"])
def test_every_place_leaves_on_its_own(executor):
    step, state = per_token(STEP, {"h": H}, RULE)
    gone = dx.criteria.gate_above(0.5)
    if executor == "stream":
        halted = dx.run_stream(step, state, N, gone, slots=2)
    else:
        halted = dx.run_until(step, state, N, gone, executor, tile=2)
    for row in range(B):
        answer, steps, depth = oracle(H[row])
        np.testing.assert_allclose(halted.output["output"][row], answer, atol=1e-5)
        assert (
            halted.output["steps"][row].tolist() == steps.tolist()
            and halted.exit_depth[row] == depth
        )
    assert len(set(np.asarray(halted.output["steps"]).ravel().tolist())) > 3, "places differ"


def test_refusals():
    with pytest.raises(ValueError, match=r"`moving` names \['s'\], which the state does not have"):
        per_token(STEP, {"h": H}, RULE, moving=("s",))
    with pytest.raises(TypeError, match="`state` must be a dict"):
        per_token(STEP, H, RULE)
    with pytest.raises(TypeError, match=r"`criterion` must be a dx.Criterion, got float"):
        per_token(STEP, {"h": H}, 0.1)
    rows = dx.tied_step(block, lambda w, state: state["h"][:, 0, 0], W)
    with pytest.raises(
        ValueError,
        match=r"`step` must return outputs of shape \[b, L, ...\], .* got float32\[5\]",
    ):
        per_token(rows, {"h": H}, RULE)


def test_several_iterations_a_step_are_counted():
    step = dx.tied_step(
        lambda p, s: {"h": s["h"] + p}, lambda p, s: s["h"], jnp.float32(1.0), blocks=4
    )
    never = dx.criteria.gate_above(0.0, read=lambda output: -output)
    halted = dx.run_until(
        *per_token(step, {"h": jnp.zeros((2, 3))}, never), 8, dx.criteria.gate_above(0.5)
    )
    assert (halted.output["output"] == 8.0).all() and halted.exit_depth.tolist() == [8, 8]


def test_thresholds_for_fewer_exits_than_the_run_has_are_refused():
    step, state = per_token(STEP, {"h": H}, dx.criteria.divergence_below(jnp.full(4, 5e-4)))
    with pytest.raises(ValueError, match="`depth` is 12, and `step` is made for 5 blocks at most"):
        dx.run_until(step, state, N, dx.criteria.gate_above(0.5))
    assert dx.run_until(step, state, 5, dx.criteria.gate_above(0.5)).exit_depth.max() <= 5


@pytest.mark.parametrize("mixed", [False, True], ids=["apart", "places that read each other"])
def test_places_that_are_done_where_a_step_has_no_derivative(mixed):
    """The first place is at 0 after one step, where the step is 0 / 0."""

    def walk(p, s):
        h = s["h"]
        far = jnp.linalg.norm(h, axis=-1, keepdims=True)
        drawn = 0.1 * p * h.sum(axis=1, keepdims=True) if mixed else 0.0
        return {"h": h * jnp.maximum(far - p, 0.0) / far + jnp.where(far > 1.0, drawn, 0.0)}

    places = jnp.array([[[0.3, 0.4], [6.0, 8.0]]])
    distance = lambda i, h, m: (jnp.abs(h).sum(-1), m)
    there = dx.Criterion(distance, lambda i, score, m: (score == 0.0, m))

    def ran(p):
        step = dx.tied_step(walk, lambda p, s: s["h"], p)
        step, state = per_token(step, {"h": places}, there)
        return dx.run_all(step, state, 4)["output"][-1].sum()

    def looped(p):
        first, second = places[0]
        for _ in range(4):
            far = jnp.linalg.norm(second)
            drawn = 0.1 * p * (first + second) if mixed else 0.0
            second = second * (far - p) / far + drawn
            first = jnp.zeros(2)
        return second.sum()

    got = jax.value_and_grad(ran)(jnp.float32(1.0))
    np.testing.assert_allclose(got, jax.value_and_grad(looped)(jnp.float32(1.0)), rtol=1e-5)
