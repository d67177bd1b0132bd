"""The recursive network against a loop over its calls, its gradient against one through a detached
start, and the engine.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.engine.streaming.stream import is_tied

PLACES, VOCABULARY, CLASSES, WIDTH, ROWS, SEGMENTS = 4, 5, 3, 8, 6, 3
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (ROWS, PLACES))
FORMS = {
    "trm": dict(inner=2, cycles=2),
    "hrm": dict(inner=2, cycles=2, nets=2, gradient="last"),
    "attention": dict(inner=1, cycles=2, mixing="attention", heads=2),
    "one cycle, two layers": dict(inner=1, cycles=1, layers=2),
    "one update, last": dict(inner=1, cycles=1, gradient="last"),
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


def small(**form):
    return dx.models.Recursive(width=WIDTH, segments=SEGMENTS, **{"layers": 1} | form).build(
        dx.Tokens(VOCABULARY, PLACES), CLASSES
    )


def scattered(params):
    """Parameters away from their initial zeros."""
    draw = np.random.default_rng(1)
    return jax.tree.map(
        lambda a: np.asarray(a) + np.float32(0.2) * draw.standard_normal(a.shape, np.float32),
        params,
    )


def rms_norm(x):
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def swiglu(x, p):
    hidden = x @ p["gate_up"]["kernel"].reshape(x.shape[-1], -1)
    half = hidden.shape[-1] // 2
    gate, up = hidden[..., :half], hidden[..., half:]
    return gate / (1 + jnp.exp(-gate)) * up @ p["down"]["kernel"]


def attention(x, p, heads):
    width = x.shape[-1]
    size = width // heads
    mixed = []
    for h in range(heads):
        q, k, v = (x @ p["qkv"]["kernel"][:, j, h] for j in range(3))
        weights = jnp.exp(q @ k.T / size**0.5)
        mixed.append(weights / weights.sum(-1, keepdims=True) @ v)
    return jnp.concatenate(mixed, -1) @ p["out"]["kernel"].reshape(width, width)


def net(x, p, form):
    """One row, `[L, D]`."""
    for k in range(form.get("layers", 1)):
        if form.get("mixing") == "attention":
            x = rms_norm(x + attention(x, p[f"mix{k}"], form["heads"]))
        else:
            x = rms_norm(x + swiglu(x.T, p[f"mix{k}"]).T)
        x = rms_norm(x + swiglu(x, p[f"mlp{k}"]))
    return x


def embedded(p, tokens, form):
    e = p["embed"]["token_embedding"][tokens]
    return (
        (e + p["embed"]["position_embedding"]) / 2**0.5 if form.get("mixing") == "attention" else e
    )


def calls(form):
    """The calls of a segment, "z" or "y", and whether each carries a gradient."""
    sequence = (["z"] * form["inner"] + ["y"]) * form["cycles"]
    with_gradient = 2 if form.get("gradient") == "last" else form["inner"] + 1
    return [(what, k >= len(sequence) - with_gradient) for k, what in enumerate(sequence)]


def segment(p, e, y, z, form):
    """One row; calls without a gradient see detached weights, state and input."""
    apart = form.get("nets") == 2
    for what, carries in calls(form):
        free = (lambda t: t) if carries else jax.lax.stop_gradient
        weights = free(p["latent" if what == "z" else "answer"] if apart else p["net"])
        y, z = free(y), free(z)
        if what == "z":
            z = net(z + y + free(e), weights, form)
        else:
            y = net(y + z, weights, form)
    return y, z


def head(p, y):
    return y @ p["head"]["logits"]["kernel"], y.mean(0) @ p["head"]["halt"]["kernel"][:, 0] + p[
        "head"
    ]["halt"]["bias"][0]


def by_loop(p, tokens, form, segments=SEGMENTS):
    """Outputs of one row after each segment."""
    e = embedded(p, tokens, form)
    y, z = (jnp.broadcast_to(p["start"][f"{name}_embedding"], e.shape) for name in "yz")
    found = []
    for _ in range(segments):
        before = z
        y, z = segment(p, e, jax.lax.stop_gradient(y), jax.lax.stop_gradient(z), form)
        change = jnp.linalg.norm(z - before) / jnp.linalg.norm(z)
        found.append((*head(p, y), change))
    return found


def run_of(model, params, tokens=TOKENS):
    return jax.jit(lambda p, x: dx.run_all(model.steps(p), model.embed(p, x), model.depth))(
        params, tokens
    )


@every_form
def test_outputs_are_the_loop(form):
    model = small(**form)
    params = scattered(model.init(jax.random.key(0)))
    outputs = run_of(model, params)
    assert {k: v.shape[2:] for k, v in outputs.items()} == {
        "logits": (PLACES, CLASSES),
        "halt_logit": (),
        "change": (),
    }
    looped = jax.jit(lambda p, tokens: by_loop(p, tokens, form))
    for b in range(ROWS):
        for i, (logits, sure, change) in enumerate(looped(params, TOKENS[b])):
            np.testing.assert_allclose(outputs["logits"][i, b], logits, rtol=2e-3, atol=2e-4)
            np.testing.assert_allclose(outputs["halt_logit"][i, b], sure, rtol=2e-3, atol=2e-4)
            np.testing.assert_allclose(outputs["change"][i, b], change, rtol=2e-3)


@pytest.mark.parametrize(
    "form",
    [
        FORMS["trm"],
        FORMS["hrm"],
        pytest.param(FORMS["attention"], marks=pytest.mark.slow),
        pytest.param(FORMS["one cycle, two layers"], marks=pytest.mark.slow),
        FORMS["one update, last"],
    ],
    ids=FORMS.keys(),
)
def test_the_gradient_is_that_of_the_last_calls_from_a_detached_start(form):
    """Of two segments, so that a gradient from one to the one before would show."""
    model = small(**form)
    params = scattered(model.init(jax.random.key(0)))
    weights = np.random.default_rng(2).standard_normal((2, PLACES, CLASSES)).astype(np.float32)

    def loss(p):
        outputs = dx.run_all(model.steps(p), model.embed(p, TOKENS[:1]), 2)
        return (weights * outputs["logits"][:, 0]).sum() + outputs["halt_logit"].sum()

    def looped(p):
        found = by_loop(p, TOKENS[0], form, 2)
        return sum((weights[i] * logits).sum() + sure for i, (logits, sure, _) in enumerate(found))

    found, wanted = jax.jit(jax.grad(loss))(params), jax.jit(jax.grad(looped))(params)
    for (path, a), b in zip(
        jax.tree_util.tree_flatten_with_path(found)[0], jax.tree.leaves(wanted), strict=True
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(
            a, b, rtol=5e-3, atol=5e-4 * float(jnp.abs(b).max() + 1e-3), err_msg=name
        )
        assert (float(jnp.abs(a).max()) > 0) == ("start" not in name), name


def test_free_cycles_carry_no_gradient_though_they_matter():
    """The slope with respect to the state before the segment is zero by autodiff, and not by finite
    differences.
    """
    model = small(inner=1, cycles=2)
    params = scattered(model.init(jax.random.key(0)))
    step, state = model.steps(params), model.embed(params, TOKENS)
    out = jax.jit(
        lambda y, z: step.apply(step.select(0), 0, {**state, "y": y, "z": z})[1]["logits"].sum()
    )
    slopes = jax.grad(out, argnums=(0, 1))(state["y"], state["z"])
    assert not any(np.asarray(slope).any() for slope in slopes)
    nudge = 1e-2 * jax.random.normal(jax.random.key(3), state["y"].shape)
    for moved in (out(state["y"] + nudge, state["z"]), out(state["y"], state["z"] + nudge)):
        assert abs(float(moved - out(state["y"], state["z"]))) > 1e-4


def test_the_halting_logit_starts_at_minus_five():
    outputs = run_of(small(), small().init(jax.random.key(4)))
    np.testing.assert_array_equal(outputs["halt_logit"], np.full((SEGMENTS, ROWS), -5.0))
    assert abs(float(jax.nn.sigmoid(outputs["halt_logit"][0, 0])) - 0.0067) < 1e-4


def test_every_row_begins_at_the_same_fixed_states():
    """Bitwise, at every batch size, as drawn with the parameters; the gradient and so an update
    leaves them alone.
    """
    model = small()
    params = model.init(jax.random.key(0))
    state = model.embed(params, TOKENS)
    for name in "yz":
        first = np.asarray(params["start"][f"{name}_embedding"])
        np.testing.assert_array_equal(state[name], np.broadcast_to(first, (ROWS, PLACES, WIDTH)))
        assert np.abs(first).max() <= 2
    assert not np.array_equal(params["start"]["y_embedding"], params["start"]["z_embedding"])


def test_golden_fixed_states_are_normals_of_deviation_one_cut_at_two():
    """A deviation of 0.88 is left of 1, and half of the values lie within 0.64 of 0."""
    wide = dx.models.Recursive(width=4096, segments=1, layers=1).build(
        dx.Tokens(VOCABULARY, PLACES), CLASSES
    )
    for first in jax.jit(lambda key: wide.init(key)["start"])(jax.random.key(0)).values():
        assert 0.8 < first.std() < 0.95 and 1.9 < np.abs(first).max() <= 2
        np.testing.assert_allclose(
            [first.std(), np.median(np.abs(first))], [0.880, 0.640], atol=0.03
        )


@pytest.mark.slow
@pytest.mark.parametrize("form", [FORMS["hrm"], FORMS["attention"]], ids=["hrm", "attention"])
def test_the_engine_takes_it(form):
    """All ways of running it agree, and a slot that is filled again begins as the first one did."""
    model = small(**form)
    params = scattered(model.init(jax.random.key(0)))
    step, state = model.steps(params), model.embed(params, TOKENS)
    assert is_tied(step, state)
    outputs = run_of(model, params)
    middle = jnp.median(outputs["halt_logit"][:2])
    criterion = dx.criteria.gate_above(middle, read=lambda output: output["halt_logit"])
    wanted = dx.replay(criterion, outputs)
    assert len(set(np.asarray(wanted.exit).tolist())) > 1
    for halted in (
        dx.run_until(step, state, SEGMENTS, criterion, "compacted", tile=2),
        dx.run_until(step, state, SEGMENTS, criterion, "masked"),
        dx.run_stream(step, state, SEGMENTS, criterion, slots=2),
    ):
        np.testing.assert_array_equal(halted.exit, wanted.exit)
        chex.assert_trees_all_close(halted.output, wanted.output, rtol=1e-3, atol=1e-4)


def test_a_slot_that_is_filled_again_begins_as_new():
    """Bitwise, in one slot (tiles of other sizes round otherwise): the same puzzle again and again,
    leaving at different depths.
    """
    model = small(inner=1, cycles=2)
    params = scattered(model.init(jax.random.key(0)))
    depths = np.array([3, 1, 1, 3, 2, 1, 3, 2, 1, 2])
    state = model.embed(params, np.repeat(TOKENS[:1], len(depths), axis=0))
    halted = dx.run_stream(
        model.steps(params), state, SEGMENTS, dx.criteria.at_depth(depths), slots=1
    )
    assert (
        halted.exit_depth.tolist() == depths.tolist() and int(halted.rows_executed) == depths.sum()
    )
    logits = np.asarray(halted.output["logits"])
    for depth in (1, 2, 3):
        same = logits[depths == depth]
        np.testing.assert_array_equal(same, np.broadcast_to(same[0], same.shape))
    assert not np.array_equal(logits[0], logits[1])


def test_half_precision_parameters_compute_in_half_precision():
    model = small(inner=1, cycles=2)
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), model.init(jax.random.key(0)))
    outputs = run_of(model, params)
    assert (outputs["logits"].dtype, outputs["halt_logit"].dtype, outputs["change"].dtype) == (
        jnp.bfloat16,
        jnp.bfloat16,
        jnp.float32,
    )


@pytest.mark.parametrize(
    "field, wrong",
    [
        ("inner", {"inner": 0}),
        ("cycles", {"cycles": 1.5}),
        ("mixing", {"mixing": "conv"}),
        ("nets", {"nets": 3}),
        ("gradient", {"gradient": "all"}),
        ("width", {"mixing": "attention", "heads": 3}),
        ("padding", {"padding": VOCABULARY}),
    ],
)
def test_refusals_name_the_field(field, wrong):
    with pytest.raises(ValueError, match=f"`Recursive`: {field} must"):
        small(**wrong)


def test_wrong_inputs_are_named():
    model = small()
    params = model.init(jax.random.key(0))
    for wrong in (TOKENS[:, :3], TOKENS.astype(np.float32)):
        with pytest.raises(ValueError, match=r"^`inputs` must be integers \[B, 4\], got"):
            model.embed(params, wrong)
    with pytest.raises(ValueError, match="`Recursive`: inputs must have a length"):
        dx.models.Recursive().build(dx.Tokens(VOCABULARY), CLASSES)
