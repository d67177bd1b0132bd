"""ACT as a step against a loop over rows and positions: both updates, executors, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.objectives.act import act_account, halting_sums
from dynexit.transforms.averaging import averaged, averaged_step, averaging_state

N, B, C = 6, 9, 3


def prescribed(p, y):
    """A tied step whose outputs are p `[N, B, ...]` and y `[N, B, ..., C]`, and its first state."""

    def head(tables, state):
        pick = lambda table: table[state["step"] - 1, state["row"]]
        return {
            "logits": pick(tables["y"]),
            "halt_logit": jax.scipy.special.logit(pick(tables["p"])),
        }

    block = lambda tables, state: {**state, "step": state["step"] + 1}
    step = dx.tied_step(block, head, {"p": p, "y": y})
    rows = p.shape[1]
    return step, {"step": jnp.zeros(rows, jnp.int32), "row": jnp.arange(rows, dtype=jnp.int32)}


def every_exit(p, y, **options):
    step, state = prescribed(jnp.asarray(p, jnp.float32), jnp.asarray(y, jnp.float32))
    return dx.run_all(averaged_step(step, **options), averaging_state(step, state), len(p))


def loop(p, y, epsilon, update):
    """One position: the output of every step if it were the last, and the accumulated h."""
    h, mean, outputs, sums = 0.0, np.zeros(y.shape[1:]), [], []
    keep = lambda w: 1.0 if update == "accumulated" else 1 - w
    for probability, value in zip(p, y, strict=True):
        outputs.append(keep(1 - h) * mean + (1 - h) * value)
        halts = h < 1.0 and h + probability > 1 - epsilon
        w = 1 - h if halts else 0.0 if h == 1.0 else probability
        mean = keep(w) * mean + w * value
        h = 1.0 if halts else h + w
        sums.append(h)
    return np.array(outputs), np.array(sums)


def test_golden_updates_differ_on_identical_outputs():
    p, y = np.array([[0.3], [0.4], [0.5]]), np.full((3, 1, 1), 5.0)
    found = {
        update: float(every_exit(p, y, update=update)["logits"][-1, 0, 0])
        for update in ("accumulated", "basic")
    }
    np.testing.assert_allclose(
        [found["accumulated"], found["basic"]], [5.0, 0.706 * 5.0], rtol=1e-5
    )


def test_golden_step_limit():
    """p = 0.05 and 8 steps: the weights sum to 1, so the mean of equal outputs is that output."""
    np.testing.assert_allclose(
        every_exit(np.full((8, 1), 0.05), np.full((8, 1, 1), 2.0))["logits"][-1], 2.0, rtol=1e-6
    )


def test_golden_halting_at_the_first_step():
    outputs = every_exit(np.array([[1.0], [0.5]]), np.array([[[3.0]], [[-7.0]]]))
    np.testing.assert_array_equal(outputs["logits"][:, 0, 0], [3.0, 3.0])
    np.testing.assert_array_equal(outputs["gate"][:, 0], [1.0, 1.0])


@pytest.mark.parametrize("update", ["accumulated", "basic"])
@pytest.mark.parametrize("positions, epsilon", [((), 0.01), ((), 0.25), ((4,), 0.01)])
def test_matches_the_loop(update, positions, epsilon):
    keys = jax.random.split(jax.random.key(1))
    p = jax.random.uniform(keys[0], (N, B, *positions)) ** 2
    y = jax.random.normal(keys[1], (N, B, *positions, C))
    outputs = every_exit(p, y, epsilon=epsilon, update=update)
    for where in np.ndindex(B, *positions):
        at = (slice(None), *where)
        expected, sums = loop(
            np.asarray(p, np.float64)[at], np.asarray(y, np.float64)[at], epsilon, update
        )
        np.testing.assert_allclose(outputs["logits"][at], expected, atol=1e-5)
        np.testing.assert_allclose(outputs["accumulated"][at], sums, atol=1e-5)
    sums = np.asarray(outputs["accumulated"])
    assert outputs["gate"].shape == (N, B)
    np.testing.assert_array_equal(outputs["gate"], sums.reshape(N, B, -1).min(axis=-1))
    assert len(np.unique((sums < 1).sum(axis=0))) > 2, (
        "positions must differ in their halting steps"
    )


def test_sums_and_mean_match_the_objective():
    """The same quantities from all steps at once and one step at a time."""
    keys = jax.random.split(jax.random.key(2))
    p, y = jax.random.uniform(keys[0], (N, B)) ** 2, jax.random.normal(keys[1], (N, B, C))
    outputs, sums = every_exit(p, y), halting_sums(p)
    np.testing.assert_allclose(outputs["accumulated"], sums, atol=1e-6)
    np.testing.assert_array_equal(
        np.asarray(outputs["accumulated"]) == 1.0, np.asarray(sums) == 1.0
    )
    np.testing.assert_allclose(
        outputs["logits"][-1], (act_account(sums).weights[..., None] * y).sum(axis=0), atol=1e-5
    )


def test_gradients_match_the_weighted_sum():
    keys = jax.random.split(jax.random.key(3), 3)
    p, y, v = (
        jax.random.uniform(keys[0], (N, B)) ** 2,
        jax.random.normal(keys[1], (N, B, C)),
        jax.random.normal(keys[2], (B, C)),
    )
    stepwise = lambda p, y: (every_exit(p, y)["logits"][-1] * v).sum()
    at_once = lambda p, y: (
        (act_account(halting_sums(p)).weights[..., None] * y).sum(axis=0) * v
    ).sum()
    for found, wanted in zip(
        jax.grad(stepwise, (0, 1))(p, y), jax.grad(at_once, (0, 1))(p, y), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("positions", [(), pytest.param((4,), marks=pytest.mark.slow)])
def test_a_row_exits_with_its_output_at_full_depth(positions):
    keys = jax.random.split(jax.random.key(4))
    rate = jnp.linspace(0.1, 3.0, B).reshape(1, B, *(1 for _ in positions))
    p = jnp.minimum(jax.random.uniform(keys[0], (N, B, *positions)) * rate, 1.0)
    y = jax.random.normal(keys[1], (N, B, *positions, C))
    step, state = prescribed(p, y)
    run, start, rule = (
        averaged_step(step),
        averaging_state(step, state),
        dx.criteria.gate_above(0.99),
    )
    outputs = dx.run_all(run, start, N)
    wanted = act_account(outputs["accumulated"]).updates.reshape(B, -1).max(axis=1)
    assert len(np.unique(wanted)) > 2
    halted, streamed = (
        dx.run_until(run, start, N, rule, tile=4),
        dx.run_stream(run, start, N, rule, slots=3),
    )
    for found in (halted, streamed):
        np.testing.assert_array_equal(found.exit_depth, wanted)
        np.testing.assert_allclose(found.output["logits"], outputs["logits"][-1], atol=1e-6)
        assert int(found.rows_executed) < N * B


def test_the_gate_and_the_sum_of_the_logits_give_the_same_exits():
    p, y = jax.random.uniform(jax.random.key(5), (N, B)) ** 2, jnp.zeros((N, B, C))
    outputs = every_exit(p, y)
    by_gate, by_sum = (
        dx.replay(rule(0.99), outputs).exit
        for rule in (dx.criteria.gate_above, dx.criteria.halting_sum_above)
    )
    np.testing.assert_array_equal(by_gate, by_sum)


def test_a_smaller_threshold_is_a_larger_epsilon():
    keys = jax.random.split(jax.random.key(6))
    p, y = jax.random.uniform(keys[0], (N, B)) ** 2, jax.random.normal(keys[1], (N, B, C))
    early, meant = (
        dx.replay(dx.criteria.gate_above(0.6), every_exit(p, y)),
        every_exit(p, y, epsilon=0.4),
    )
    np.testing.assert_allclose(early.output["logits"], meant["logits"][-1], atol=1e-6)
    assert (
        np.asarray(early.exit)
        < np.asarray(dx.replay(dx.criteria.gate_above(0.99), every_exit(p, y)).exit)
    ).any()


def test_another_epsilon_does_not_recompile():
    step, state = prescribed(jnp.full((N, B), 0.3), jnp.zeros((N, B, C)))
    start, traces = averaging_state(step, state), []

    @jax.jit
    def run(step):
        traces.append(None)
        return dx.run_all(step, start, N)["accumulated"]

    halted = [
        int((run(averaged_step(step, epsilon))[:, 0] < 1).sum()) for epsilon in (0.01, 0.3, 0.9)
    ]
    assert halted == [3, 2, 0] and len(traces) == 1


def test_a_nan_prevents_the_exit():
    p = jnp.full((N, 2), 0.6).at[1:, 0].set(jnp.nan)
    halted = dx.replay(dx.criteria.gate_above(0.99), every_exit(p, jnp.ones((N, 2, C))))
    assert halted.exit.tolist() == [N - 1, 1] and halted.nan_exits.tolist() == [N - 1, 0]


def test_half_precision_outputs_are_averaged_in_float32():
    model = averaged(dx.models.Gru(width=8, steps=5).build((4,), 2))
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), model.init(jax.random.key(0)))
    outputs = dx.run_all(
        model.steps(params), model.embed(params, jnp.ones((3, 4), jnp.bfloat16)), 5
    )
    assert {k: v.dtype for k, v in outputs.items()} == {
        "logits": jnp.float32,
        "halt_logit": jnp.bfloat16,
        "accumulated": jnp.float32,
        "gate": jnp.float32,
    }


def test_an_averaged_model_returns_the_weighted_mean():
    model, x = (
        dx.models.Gru(width=8, steps=5, halt_bias=-1.0).build((4,), 2),
        jax.random.normal(jax.random.key(1), (3, 4)),
    )
    mean, params = averaged(model), model.init(jax.random.key(0))
    raw = dx.run_all(model.steps(params), model.embed(params, x), 5)
    outputs = dx.run_all(mean.steps(params), mean.embed(params, x), 5)
    weights = act_account(halting_sums(jax.nn.sigmoid(raw["halt_logit"]))).weights
    np.testing.assert_allclose(
        outputs["logits"][-1], (weights[..., None] * raw["logits"]).sum(axis=0), atol=1e-5
    )
    assert (
        mean.names == model.names
        and mean.depth == model.depth
        and (weights > 0.01).all(axis=1).sum() >= 3
    )


PLAIN = dx.tied_step(lambda p, h: h, lambda p, h: h, ())
STAGES = dx.models.Gru(width=8, steps=5).build((4,), 2)._replace(depth=(2, 3))
MISMATCHED = {"halt_logit": jnp.ones((2, 3)), "logits": jnp.ones((2, 5))}


@pytest.mark.parametrize(
    "call, error, argument",
    [
        (lambda: averaged_step(PLAIN, 1.0), ValueError, "epsilon"),
        (lambda: averaged_step(PLAIN, update="mean"), ValueError, "update"),
        (lambda: averaging_state(PLAIN, jnp.ones(2)), ValueError, "step"),
        (lambda: averaging_state(PLAIN, {"halt_logit": jnp.ones(2)}), ValueError, "step"),
        (lambda: averaging_state(PLAIN, MISMATCHED), ValueError, "step"),
        (lambda: averaged(STAGES), TypeError, "model"),
    ],
)
def test_invalid_arguments(call, error, argument):
    with pytest.raises(error, match=f"^`{argument}`"):
        call()
