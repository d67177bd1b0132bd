"""The continuous thought machine against a numpy loop over rows and ticks, its synchronisation
against sums, and the engine.
"""

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.engine.streaming.stream import is_tied
from dynexit.models.recurrent.synchronisation import (
    accumulated,
    decay_in_range,
    neuron_pairs,
    synchronisation,
)
from dynexit.transforms.best_so_far import best_so_far, certainty

ROWS, PLACES, CHANNELS, CLASSES, WIDTH, TICKS, ACTION, OUT = 6, 5, 2, 3, 8, 4, 4, 5
INPUTS = np.random.default_rng(0).normal(size=(ROWS, PLACES, CHANNELS)).astype(np.float32)
FORMS = {
    "an answer a place": dict(answers=PLACES),
    "one answer": dict(memory=1, heads=2),
    "first and last neurons": dict(answers=2, pairing="first_last", memory=6),
    "neurons with themselves": dict(self_pairs=4, seed=3),
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


def small(**form):
    sizes = dict(
        width=WIDTH, ticks=TICKS, memory=3, hidden=2, features=4, heads=1, action=ACTION, out=OUT
    )
    return dx.models.Ctm(**sizes | form).build((PLACES, CHANNELS), CLASSES)


def pairs_of(form):
    return neuron_pairs(
        WIDTH,
        ACTION,
        OUT,
        form.get("pairing", "random"),
        form.get("self_pairs", 0),
        form.get("seed", 0),
    )


def scattered(params):
    """Parameters away from their initial zeros; decays are some below 0, some above."""
    draw = np.random.default_rng(1)
    return jax.tree.map(
        lambda a: np.asarray(a) + np.float32(0.4) * draw.standard_normal(a.shape, np.float32),
        params,
    )


def layer_norm(x, p):
    p = p["LayerNorm_0"]
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * p["scale"] + p["bias"]


def dense(x, p):
    """Heads and their channels are one axis here."""
    return x @ p["kernel"].reshape(x.shape[-1], -1) + p["bias"].ravel()


def glu(x):
    half = x.shape[-1] // 2
    return x[..., :half] / (1 + np.exp(-x[..., half:]))


def neuron_model(past, p, d):
    """One neuron's MLP, `[M]` to a number."""
    hidden = glu(past @ p["first_kernel"][d] + p["first_bias"][d])
    return glu(hidden @ p["second_kernel"][d] + p["second_bias"][d])[0]


def read_by_attention(query, keys, values, heads):
    size, seen = len(query) // heads, []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        weights = np.exp(keys[:, part] @ query[part] / size**0.5)
        seen.append(weights / weights.sum() @ values[:, part])
    return np.concatenate(seen)


def synchrony(trace, pairs, decay):
    """sum_s exp(-decay (t - s)) z_i z_j over the root of the weights' sum, from all past
    activations `[t, D]`.
    """
    found = []
    for i, j, d in zip(*pairs, np.clip(decay, 0, 15), strict=True):
        weights = np.exp(-d * np.arange(len(trace) - 1, -1, -1))
        found.append(
            sum(w * z[i] * z[j] for w, z in zip(weights, trace, strict=True)) / weights.sum() ** 0.5
        )
    return np.array(found)


def by_loop(p, x, form, ticks=TICKS):
    """Logits of one row after each tick; synchronisation is summed anew from the whole past at
    every tick.
    """
    p, action, out = jax.tree.map(lambda a: np.asarray(a, np.float64), p), *pairs_of(form)
    e = np.stack(
        [
            layer_norm(dense(c, p["embed"]["input"]) + w, p["embed"]["norm"])
            for c, w in zip(x, p["embed"]["position_embedding"], strict=True)
        ]
    )
    keys, values = np.split(dense(e, p["embed"]["key_value"]), 2, axis=1)
    trace, history, tick, logits = (
        [p["start"]["z_embedding"]],
        p["start"]["history_embedding"].copy(),
        p["tick"],
        [],
    )
    for _ in range(ticks):
        query = dense(synchrony(trace, action, tick["action_decay"]), tick["query"])
        seen = read_by_attention(query, keys, values, form.get("heads", 1))
        before = layer_norm(
            glu(dense(np.concatenate([seen, trace[-1]]), tick["synapses"])), tick["norm"]
        )
        history = np.stack(
            [np.append(past[1:], a) for past, a in zip(history, before, strict=True)]
        )
        trace.append(
            np.array([neuron_model(past, tick["neurons"], d) for d, past in enumerate(history)])
        )
        answer = dense(synchrony(trace, out, tick["out_decay"]), p["head"]["logits"])
        logits.append(answer.reshape(-1, CLASSES) if "answers" in form else answer)
    return np.stack(logits)


def run_of(model, params, inputs=INPUTS):
    return jax.jit(lambda p, x: dx.run_all(model.steps(p), model.embed(p, x), model.depth))(
        params, inputs
    )


@every_form
def test_outputs_are_the_loop(form):
    model = small(**form)
    params = scattered(model.init(jax.random.key(0)))
    decays = np.concatenate([params["tick"]["action_decay"], params["tick"]["out_decay"]])
    assert decays.min() < 0 < decays.max()
    outputs = run_of(model, params)
    for b in range(ROWS):
        np.testing.assert_allclose(
            outputs[:, b], by_loop(params, INPUTS[b], form), rtol=2e-4, atol=2e-4
        )


def test_without_decay_synchronisation_is_the_mean_product_times_the_root_of_the_ticks():
    trace = np.random.default_rng(2).normal(size=(7, 3, 4)).astype(np.float32)  # [t, b, D]
    pairs = ((0, 1, 2), (3, 1, 0))
    state = {"s_alpha": jnp.zeros((3, 3)), "s_beta": jnp.zeros((3, 3))}
    for t, z in enumerate(trace, start=1):
        state = accumulated(state, "s", jnp.asarray(z), pairs, jnp.zeros(3))
        wanted = (
            np.stack(
                [(trace[:t, :, i] * trace[:t, :, j]).sum(0) for i, j in zip(*pairs, strict=True)],
                -1,
            )
            / t**0.5
        )
        np.testing.assert_allclose(synchronisation(state, "s"), wanted, rtol=1e-5, atol=1e-6)


def test_with_the_largest_decay_only_the_last_tick_counts():
    """e^-15 of what was is left."""
    z = jnp.array([[[2.0, 3.0]], [[5.0, 7.0]]])
    state = {"s_alpha": jnp.zeros((1, 3)), "s_beta": jnp.zeros((1, 3))}
    for now in z:
        state = accumulated(state, "s", now, ((0, 0, 0), (1, 1, 1)), jnp.array([15.0, 15.0, 0.0]))
    left = 35 + 6 * np.exp(-15)
    np.testing.assert_allclose(state["s_alpha"][0], [left, left, 41], rtol=1e-7)
    np.testing.assert_allclose(state["s_beta"][0], [1 + np.exp(-15), 1 + np.exp(-15), 2], rtol=1e-7)


def test_a_decay_out_of_range_can_come_back_and_go_no_further():
    """Descent moves against the slope."""
    decay = jnp.array([-1.0, -1.0, 0.0, 0.0, 3.0, 16.0, 16.0])
    slopes = jnp.array([2.0, -2.0, 2.0, -2.0, 2.0, 2.0, -2.0])
    found = jax.grad(lambda d: (decay_in_range(d) * slopes).sum())(decay)
    np.testing.assert_array_equal(found, [0.0, -2.0, 2.0, -2.0, 2.0, 2.0, 0.0])
    np.testing.assert_array_equal(decay_in_range(decay), [0, 0, 0, 0, 3, 15, 15])


def test_decays_below_zero_get_the_slope_of_all_ticks_where_it_leads_back():
    """Judged tick by tick another slope would be left: their sum may lead back where single ticks
    do not.
    """
    form = FORMS["an answer a place"]
    model = small(**form)
    params = scattered(model.init(jax.random.key(0)))
    weights = (
        np.random.default_rng(2).standard_normal((TICKS, ROWS, PLACES, CLASSES)).astype(np.float32)
    )
    value = lambda p: (weights * dx.run_all(model.steps(p), model.embed(p, INPUTS), TICKS)).sum()

    def slope(decay):
        tick = params["tick"] | {
            name: jnp.full_like(params["tick"][name], decay)
            for name in ("action_decay", "out_decay")
        }
        found = jax.grad(value)({**params, "tick": tick})["tick"]
        return np.concatenate([found["action_decay"], found["out_decay"]])

    inside, beyond = slope(0.0), slope(-0.01)
    assert (inside > 0).any() and (inside < 0).any()
    np.testing.assert_allclose(beyond, np.minimum(inside, 0.0), rtol=1e-4, atol=1e-5)


def test_the_gradient_reaches_every_parameter_and_is_the_loop_s():
    form = FORMS["an answer a place"]
    model = small(**form)
    params = scattered(model.init(jax.random.key(0)))
    decays = params["tick"]
    decays["action_decay"], decays["out_decay"] = (
        np.abs(decays["action_decay"]),
        np.abs(decays["out_decay"]),
    )
    weights = (
        np.random.default_rng(2).standard_normal((TICKS, 1, PLACES, CLASSES)).astype(np.float32)
    )
    slope = jax.jit(
        jax.grad(
            lambda p: (
                weights * dx.run_all(model.steps(p), model.embed(p, INPUTS[:1]), TICKS)
            ).sum()
        )
    )(params)
    value = lambda p: float((weights[:, 0] * by_loop(p, INPUTS[0], form)).sum())
    draw = np.random.default_rng(3)
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda a: np.asarray(a, np.float64), params))
    for k, ((path, found), leaf) in enumerate(
        zip(jax.tree_util.tree_flatten_with_path(slope)[0], leaves, strict=True)
    ):
        name = jax.tree_util.keystr(path)
        assert bool(jnp.isfinite(found).all()) and float(jnp.abs(found).max()) > 1e-6, name
        way = draw.standard_normal(leaf.shape)
        ahead, behind = (
            value(tree.unflatten([*leaves[:k], leaf + size * way, *leaves[k + 1 :]]))
            for size in (1e-5, -1e-5)
        )
        wanted = (ahead - behind) / 2e-5
        np.testing.assert_allclose(
            (np.asarray(found) * way).sum(), wanted, rtol=2e-3, atol=2e-3, err_msg=name
        )


def test_every_parameter_learns_from_the_start():
    model = small(answers=PLACES)
    params = model.init(jax.random.key(0))
    weights = jax.random.normal(jax.random.key(1), (TICKS, ROWS, PLACES, CLASSES))
    slope = jax.jit(
        jax.grad(
            lambda p: (weights * dx.run_all(model.steps(p), model.embed(p, INPUTS), TICKS)).sum()
        )
    )(params)
    for path, leaf in jax.tree_util.tree_flatten_with_path(slope)[0]:
        assert float(jnp.abs(leaf).max()) > 0, jax.tree_util.keystr(path)


def test_the_answer_counts_the_first_activations_and_no_tick_changes_keys_and_values():
    model = small(pairing="first_last", out=2)
    params = scattered(model.init(jax.random.key(0)))
    step, state = model.steps(params), model.embed(params, INPUTS)
    z = np.asarray(params["start"]["z_embedding"])
    np.testing.assert_allclose(
        state["out_alpha"], np.tile([z[0] * z[0], z[0] * z[1], z[1] * z[1]], (ROWS, 1)), rtol=1e-6
    )
    np.testing.assert_array_equal(state["out_beta"], np.ones((ROWS, 3)))
    np.testing.assert_array_equal(
        state["action_beta"], np.zeros((ROWS, ACTION * (ACTION + 1) // 2))
    )
    after, _ = step.apply(step.select(0), 0, state)
    for name in ("keys", "values"):
        np.testing.assert_array_equal(after[name], state[name])
    np.testing.assert_array_equal(after["history"][:, :, :-1], state["history"][:, :, 1:])


def test_pairs_are_fixed_by_the_seed():
    assert neuron_pairs(64, 16, 16, "random", 3, 0) == neuron_pairs(64, 16, 16, "random", 3, 0)
    (left, right), told = neuron_pairs(64, 16, 16, "random", 3, 0)
    assert left[:3] == right[:3] and left[3:] != right[3:] and (left, right) != told
    assert neuron_pairs(64, 16, 16, "random", 3, 1)[0] != (left, right)
    assert {*left, *right, *told[0], *told[1]} <= set(range(64))


def test_the_engine_takes_it():
    """All ways of running it agree, rows leaving at ticks of their own."""
    model = small(answers=PLACES)
    params = scattered(model.init(jax.random.key(0)))
    step, state = model.steps(params), model.embed(params, INPUTS)
    assert is_tied(step, state)
    dx.check_row_independence(step, state)
    outputs = run_of(model, params)
    certain = np.sort(np.asarray(jax.vmap(certainty)(outputs)).max(0))
    criterion = dx.criteria.gate_above(float(certain[1] + certain[2]) / 2, certainty)
    wanted = dx.replay(criterion, outputs)
    assert len(set(np.asarray(wanted.exit).tolist())) > 1
    for halted in (
        dx.run_until(step, state, TICKS, criterion, "compacted", tile=2),
        dx.run_until(step, state, TICKS, criterion, "masked"),
        dx.run_stream(step, state, TICKS, criterion, slots=2),
    ):
        np.testing.assert_array_equal(halted.exit, wanted.exit)
        np.testing.assert_allclose(halted.output, wanted.output, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "field, wrong",
    [
        ("memory", {"memory": 0}),
        ("answers", {"answers": 0}),
        ("answers", {"answers": "all"}),
        ("ticks", {"ticks": 1.5}),
        ("features", {"heads": 3}),
        ("pairing", {"pairing": "dense"}),
        ("self_pairs", {"self_pairs": 5}),
        ("self_pairs", {"self_pairs": 2, "pairing": "first_last"}),
        ("self_pairs", {"self_pairs": -1}),
        ("action and out", {"pairing": "first_last", "out": 9}),
    ],
)
def test_refusals_name_the_field(field, wrong):
    with pytest.raises(ValueError, match=f"`Ctm`: {field} must"):
        small(**wrong)


def test_an_answer_for_each_place_of_the_input():
    model = small(answers="each")
    state = jax.eval_shape(model.init, jax.random.key(0))
    assert state["head"]["logits"]["kernel"].shape[-1] == PLACES * CLASSES


def test_the_most_certain_answer_so_far_is_a_setting():
    plain, best = small(), small(best_so_far=True)
    params = plain.init(jax.random.key(0))
    wanted = run_of(best_so_far(plain), params)
    chex.assert_trees_all_equal(run_of(best, params), wanted)


def test_wrong_inputs_are_named():
    model = small()
    params = model.init(jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"`inputs` must be strings of shape \[B, 5, 2\], got \[6, 4, 2\]"
    ):
        model.embed(params, INPUTS[:, :4])
    with pytest.raises(TypeError, match="`inputs` must be floating point, got int32"):
        model.embed(params, INPUTS.astype(np.int32))


def test_half_precision_computes_in_half_precision_but_for_the_sums_over_ticks():
    """beta would stand still at 256 in bfloat16."""
    model = small(answers=PLACES)
    params = jax.tree.map(
        lambda a: jnp.asarray(a, jnp.bfloat16), scattered(model.init(jax.random.key(0)))
    )
    half = jnp.asarray(INPUTS, jnp.bfloat16)
    for weights in (params, jax.tree.map(lambda a: a.astype(jnp.float32), params)):
        state = model.embed(weights, half)
        sums = {name for name, leaf in state.items() if leaf.dtype == jnp.float32}
        assert sums == {"action_alpha", "action_beta", "out_alpha", "out_beta"}
        assert all(leaf.dtype == jnp.bfloat16 for name, leaf in state.items() if name not in sums)
        outputs = run_of(model, weights, half)
        assert outputs.dtype == jnp.bfloat16
        whole = run_of(model, jax.tree.map(lambda a: a.astype(jnp.float32), params), INPUTS)
        np.testing.assert_allclose(
            outputs.astype(jnp.float32), whole, atol=0.1 * float(jnp.abs(whole).max())
        )


def test_any_number_of_rows():
    """As `dx.export` traces it, also where the most certain answer is kept."""
    inputs = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b"), PLACES, CHANNELS), jnp.float32)
    for model in (small(answers=2), small(), best_so_far(small(answers=2))):
        params = jax.eval_shape(model.init, jax.random.key(0))
        outputs = jax.eval_shape(
            lambda p, x, m=model: dx.run_all(m.steps(p), m.embed(p, x), TICKS), params, inputs
        )
        for leaf in jax.tree.leaves(outputs):
            assert leaf.shape[:2] == (TICKS, inputs.shape[0]) and leaf.shape[-1] == CLASSES
