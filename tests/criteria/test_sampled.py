"""Sampled exits: their distribution, and that neither company nor schedule moves a row's draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit import criteria
from dynexit.objectives.mixture import halting_mixture
from dynexit.objectives.ponder import log_halting

N, B = 5, 12
LOGITS = jax.random.normal(jax.random.key(0), (N, B)) - 0.7


def network():
    """A tied step whose rows say the halting logits of their own column."""
    says = lambda p, s: {"halt_logit": p[s["step"] - 1, s["row"]]}
    step = dx.tied_step(lambda p, s: {**s, "step": s["step"] + 1}, says, LOGITS)
    return step, {"step": jnp.zeros(B, jnp.int32), "row": jnp.arange(B, dtype=jnp.int32)}


def test_exits_are_drawn_from_the_halting_distribution():
    column, rows = LOGITS[:, :1], 40_000
    exits = dx.replay(
        criteria.halting_sampled(jax.random.key(1)), {"halt_logit": jnp.tile(column, (1, rows))}
    ).exit
    found = np.bincount(np.asarray(exits), minlength=N) / rows
    np.testing.assert_allclose(
        found, jnp.exp(log_halting(column))[:, 0], atol=0.0125
    )  # five standard deviations


def test_an_exit_is_the_quantile_of_the_row_s_own_draw():
    """A loop; the draw is read from the memory."""
    halted = dx.replay(criteria.halting_sampled(jax.random.key(2)), {"halt_logit": LOGITS})
    u = -np.expm1(np.asarray(halted.memory.decide, np.float64))
    assert (u >= 0).all() and (u < 1).all() and len(np.unique(u)) == B
    for b in range(B):
        survival, wanted = 1.0, N - 1
        for n in range(N):
            survival *= 1 - 1 / (1 + np.exp(-float(LOGITS[n, b])))
            if 1 - survival > u[b]:
                wanted = n
                break
        assert int(halted.exit[b]) == wanted


def test_all_schedules_and_a_stream_draw_alike():
    step, state = network()
    rule = criteria.halting_sampled(jax.random.key(3))
    wanted = dx.replay(rule, {"halt_logit": LOGITS}).exit
    assert len(np.unique(wanted)) > 2
    for executor in ("compacted", "masked"):
        np.testing.assert_array_equal(
            dx.run_until(step, state, N, rule, executor, tile=4).exit, wanted
        )
    np.testing.assert_array_equal(dx.run_stream(step, state, N, rule, slots=3).exit, wanted)


def test_other_rows_do_not_move_a_draw_and_keys_do():
    rule, outputs = criteria.halting_sampled(jax.random.key(4)), {"halt_logit": LOGITS}
    exits = dx.replay(rule, outputs).exit
    np.testing.assert_array_equal(dx.replay(rule, {"halt_logit": LOGITS[:, :7]}).exit, exits[:7])
    changed = dx.replay(rule, {"halt_logit": LOGITS.at[:, 2].set(9.0)}).exit
    np.testing.assert_array_equal(
        np.delete(np.asarray(changed), 2), np.delete(np.asarray(exits), 2)
    )
    again = [
        dx.replay(criteria.halting_sampled(jax.random.key(k)), outputs).exit.tolist()
        for k in (4, 5)
    ]
    assert again[0] == exits.tolist() != again[1]


def test_a_nan_does_not_leave():
    rule = criteria.halting_sampled(jax.random.key(6))
    halted = dx.replay(rule, {"halt_logit": jnp.full((N, 3), 9.0).at[:, 1].set(jnp.nan)})
    assert halted.exit.tolist() == [0, N - 1, 0]


def test_golden_q_exit_does_not_vary_and_sampling_does():
    """Sheet, point 6, with the answer right from a row's median step on: the Q-exit is right,
    sampling often too early.
    """
    ready = (jnp.cumsum(jnp.exp(log_halting(LOGITS)), axis=0) > 0.5).astype(jnp.float32)
    outputs = {"logits": jnp.stack([1 - ready, ready], axis=-1), "halt_logit": LOGITS}
    right = lambda halted: float((halted.output["logits"].argmax(-1) == 1).mean())
    keys = jax.random.split(jax.random.key(7), 50)
    drawn = [dx.replay(criteria.halting_sampled(k), outputs) for k in keys]
    assert np.std([np.asarray(h.exit) for h in drawn], axis=0).max() > 0.5
    repeated = [dx.replay(criteria.cumulative_halting_above(0.5), outputs).exit for _ in range(2)]
    np.testing.assert_array_equal(*repeated)
    mean = np.mean([right(h) for h in drawn])
    assert right(dx.replay(criteria.cumulative_halting_above(0.5), outputs)) == 1.0 > mean
    # and the mixture's probability of being right is what sampling gets on average (its classes
    # drawn too)
    chance = jax.nn.softmax(outputs["logits"])[..., 1]
    sampled = [chance[np.asarray(h.exit), np.arange(B)].mean() for h in drawn]
    np.testing.assert_allclose(
        jnp.exp(halting_mixture(outputs["logits"], LOGITS))[:, 1].mean(),
        np.mean(sampled),
        atol=0.02,
    )


def test_the_key_is_a_leaf():
    traces = []

    @jax.jit
    def exits(rule):
        traces.append(None)
        return dx.replay(rule, {"halt_logit": LOGITS}).exit

    found = {tuple(exits(criteria.halting_sampled(jax.random.key(k))).tolist()) for k in range(5)}
    assert len(traces) == 1 and len(found) > 2


@pytest.mark.parametrize(
    "key", [0, jnp.zeros(2, jnp.uint32), jax.random.split(jax.random.key(0), 3)]
)
def test_refusals(key):
    with pytest.raises(TypeError, match=r"`key` must be one key of jax.random.key, got "):
        criteria.halting_sampled(key)
