"""Depth by place against a loop over places, with the others looking on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.exits.places import by_place

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
    before, answer, steps, alive = None, np.zeros((places, 3)), np.zeros(places, int), np.ones(places, bool)
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


@pytest.mark.parametrize("schedule", ["compacted", "masked", "per_row", "stream"])
def test_every_place_leaves_on_its_own(schedule):
    step, state = by_place(STEP, {"h": H}, RULE)
    gone = dx.criteria.gate_above(0.5)
    if schedule == "stream":
        halted = dx.run_stream(step, state, N, gone, slots=2)
    else:
        halted = dx.run_until(step, state, N, gone, schedule, tile=2)
    for row in range(B):
        answer, steps, depth = oracle(H[row])
        np.testing.assert_allclose(halted.output["output"][row], answer, atol=1e-5)
        assert halted.output["steps"][row].tolist() == steps.tolist() and halted.exit_depth[row] == depth
    assert len(set(np.asarray(halted.output["steps"]).ravel().tolist())) > 3, "places differ"


def test_refusals():
    with pytest.raises(ValueError, match=r"`moving` names \['s'\], which the state does not have"):
        by_place(STEP, {"h": H}, RULE, moving=("s",))
