"""The battery that every model must pass: shapes, independent rows, types, gradients, names."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.core.settings import validate
from dynexit.models.features import features

pytestmark = pytest.mark.typed

ROWS, CLASSES = 6, 5
IMAGE, TOKENS = (8, 4, 2), dx.Tokens(7, 4)
ZOO = dx.models

MODELS = {
    "Mlp": (ZOO.Mlp(width=8, depth=3), (3, 4)),
    "Vit": (ZOO.Vit(patch=4, width=8, depth=2, heads=2), IMAGE),
    "VitEncoder": (
        ZOO.VitEncoder("dinov2", (8, 4), 2, patch=4, width=8, depth=2, heads=2, hidden=16),
        IMAGE,
    ),
    "BertEncoder": (
        ZOO.BertEncoder(
            "albert", 7, width=8, depth=2, heads=2, hidden=16, positions=4, padding=None
        ),
        TOKENS,
    ),
    "Resnet": (ZOO.Resnet(channels=(8, 16), blocks=(2, 1)), IMAGE),
    "BlockRecurrent": (ZOO.BlockRecurrent(counts=(2, 1), patch=4, width=8, heads=2), IMAGE),
    "Equilibrium": (ZOO.Equilibrium(patch=2, width=8, steps=3), IMAGE),
    "NeuralOde": (ZOO.NeuralOde(width=8, hidden=8, steps=2), (3, 4)),
    "ParaGru": (ZOO.ParaGru(width=8, depth=2), (6, 2)),
    "Gru": (ZOO.Gru(width=8, steps=3), (6,)),
    "Rnn": (ZOO.Rnn(width=8, depth=2), TOKENS),
    "DeepThinking": (ZOO.DeepThinking(width=8, steps=3, blocks=1), (6, 2)),
    "CausalLM": (ZOO.CausalLM(width=8, depth=2, heads=2, kv_heads=1, context=8), TOKENS),
    "RecurrentDepth": (
        ZOO.RecurrentDepth(width=8, heads=2, steps=3, prelude=1, core=1, coda=1),
        TOKENS,
    ),
    "UniversalTransformer": (
        ZOO.UniversalTransformer(width=8, heads=2, steps=3, halt_bias=-2.0),
        TOKENS,
    ),
    "Recursive": (ZOO.Recursive(width=8, segments=2, inner=1, cycles=2, layers=1), TOKENS),
    "Ctm": (
        ZOO.Ctm(width=8, ticks=3, memory=2, hidden=2, features=4, heads=2, action=6, out=6),
        (4, 2),
    ),
}
# Leaves that are float32 whatever the compute type is: sums over the steps, and residuals.
WIDE = {
    "RecurrentDepth": {"change", "residual"},
    "UniversalTransformer": {"accumulated", "gate", "mean", "spent", "hidden", "logits"},
    "Recursive": {"change"},
    "Ctm": {"action_alpha", "action_beta", "out_alpha", "out_beta"},
}


class Case(NamedTuple):
    """A model, its parameters, a batch of different rows, and the compiled network.

    `run(params, inputs)` runs all exits and appends to `traces` when it is traced.
    """

    name: str
    settings: Any
    shape: Any
    model: dx.Model
    params: Any
    inputs: jax.Array
    exits: int
    init: Callable
    run: Callable
    traces: list

    @property
    def tokens(self) -> bool:
        return isinstance(self.shape, dx.Tokens)


def classes_of(name):
    return TOKENS.vocabulary if name in ("CausalLM", "RecurrentDepth") else CLASSES


def drawn(shape):
    """A batch of different rows."""
    if isinstance(shape, dx.Tokens):
        return jax.random.randint(jax.random.key(1), (ROWS, shape.length), 0, shape.vocabulary)
    scale = jnp.arange(1.0, ROWS + 1).reshape(ROWS, *[1] * len(shape))
    return scale * jax.random.normal(jax.random.key(1), (ROWS, *shape))


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    settings, shape = MODELS[request.param]
    model, traces = settings.build(shape, classes_of(request.param)), []
    init, embed = jax.jit(model.init), jax.jit(model.embed)

    @jax.jit
    def compiled(steps, state):
        """The steps are arguments, as in the engine's own `jax.jit`."""
        traces.append(None)
        return dx.run_all(steps, state, model.depth)

    run = lambda params, inputs: compiled(model.steps(params), embed(params, inputs))
    params, exits = init(jax.random.key(0)), int(np.sum(model.depth))
    named = request.param, settings, shape
    return Case(*named, model, params, drawn(shape), exits, init, run, traces)


def logits_of(outputs):
    return outputs["logits"] if isinstance(outputs, dict) else outputs


def close(a, b, tolerance=1e-5):
    chex.assert_trees_all_close(a, b, rtol=tolerance, atol=tolerance)


def cast(tree, dtype):
    return jax.tree.map(lambda a: a.astype(dtype), tree)


def test_all_models_are_here():
    """But those that read a folder, whose networks are here, and `Balcony`, which has fewer exits
    than blocks.
    """
    public = {name for name in ZOO.__all__ if hasattr(getattr(ZOO, name), "build")}
    public -= {"PretrainedVit", "PretrainedBert", "Balcony"}
    assert public == set(MODELS) and len(MODELS) == 17


def test_an_output_for_every_exit_and_row(case):
    outputs = case.run(case.params, case.inputs)
    logits = logits_of(outputs)
    assert logits.shape[-1] == classes_of(case.name)
    for leaf in jax.tree.leaves(outputs):
        assert leaf.shape[:2] == (case.exits, ROWS) and leaf.dtype == jnp.float32
        assert bool(jnp.isfinite(leaf).all())


def test_exits_and_rows_are_all_distinct(case):
    flat = np.asarray(logits_of(case.run(case.params, case.inputs))).reshape(case.exits * ROWS, -1)
    flat = flat / np.abs(flat).max()
    apart = np.abs(flat[:, None] - flat[None]).max(-1) + np.eye(len(flat))
    assert apart.min() > 1e-4


def without_errors(state):
    """The state without what an ODE step derives from error estimates as small as rounding."""
    if isinstance(state, dict) and "controller" in state:
        return {name: state[name] for name in state if name not in ("controller", "next")}
    return state


def test_outputs_and_features_are_those_of_block_after_block(case):
    """The oracle: a Python loop over stages and blocks."""
    model, params, inputs = case.model, case.params, case.inputs
    outputs, state, exit = case.run(params, inputs), model.embed(params, inputs), 0
    found = jax.jit(lambda p, x: features(model, p, x))(params, inputs)
    one = jax.jit(lambda step, i, state: step.apply(step.select(i), i, state))
    steps, depths = model.steps(params), model.depth
    steps, depths = (steps, depths) if isinstance(depths, tuple) else ((steps,), (depths,))
    for step, depth in zip(steps, depths, strict=True):
        for i in range(depth):
            state, output = one(step, jnp.int32(i), state)
            close(jax.tree.map(lambda a, e=exit: a[e], outputs), output, 1e-4)
            close(without_errors(found[model.names[exit]]), without_errors(state), 1e-4)
            if case.name == "NeuralOde":  # its next step follows from error estimates
                state = found[model.names[exit]]
            exit += 1
    assert exit == case.exits and tuple(found) == model.names


def test_permuting_and_splitting_the_batch_permutes_and_splits_the_result(case):
    outputs = case.run(case.params, case.inputs)
    order = np.array([3, 0, 5, 1, 4, 2])
    close(case.run(case.params, case.inputs[order]), jax.tree.map(lambda a: a[:, order], outputs))
    parts = [case.run(case.params, case.inputs[b : b + 2]) for b in (0, 2, 4)]
    close(jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), *parts), outputs)


def test_one_row_does_not_change_another(case):
    """Not by a bit."""
    row = case.inputs[2]
    changed = case.inputs.at[2].set((row + 1) % TOKENS.vocabulary if case.tokens else -30.0 * row)
    before, after = (logits_of(case.run(case.params, x)) for x in (case.inputs, changed))
    moved = np.asarray(jnp.abs(after - before)).max(axis=(0, *range(2, before.ndim)))
    assert moved[2] > 1e-2 * np.abs(before).max() and not np.delete(moved, 2).any()


def test_compute_type_is_that_of_the_inputs(case):
    """Of tokens it is that of the parameters; float parameters may be of either type."""
    model, params = case.model, case.params
    half_params = cast(params, jnp.bfloat16)
    whole = lambda p, x: (
        model.embed(p, x),
        dx.run_all(model.steps(p), model.embed(p, x), model.depth),
    )
    inputs = case.inputs if case.tokens else case.inputs / ROWS
    half = inputs if case.tokens else cast(inputs, jnp.bfloat16)
    for weights in (half_params,) if case.tokens else (params, half_params):
        leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(whole, weights, half))
        types = {jax.tree_util.keystr(path, simple=True): leaf.dtype for path, leaf in leaves}
        floats = {name for name, dtype in types.items() if dtype == jnp.float32}
        if case.name == "NeuralOde":  # time steps need the digits
            assert not any(dtype == jnp.bfloat16 for dtype in types.values())
        else:
            known = WIDE.get(case.name, set())
            assert all(any(word in name for word in known) for name in floats), floats
            assert jnp.bfloat16 in types.values()
    outputs = logits_of(case.run(half_params, half)).astype(jnp.float32)
    expected = logits_of(case.run(params, inputs))
    assert float(jnp.abs(outputs - expected).mean()) < 0.05 * float(jnp.abs(expected).mean())


def test_float64_is_accepted(case):
    """As the type of the inputs, or of the parameters where the inputs are tokens."""
    model = case.model
    double = lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float64)
    run = lambda p, x: dx.run_all(model.steps(p), model.embed(p, x), model.depth)
    with jax.enable_x64(True):
        params = jax.tree.map(double, case.params) if case.tokens else case.params
        inputs = case.inputs if case.tokens else double(case.inputs)
        found = logits_of(jax.eval_shape(run, params, inputs)).dtype
    averaged = case.name == "UniversalTransformer"  # the mean over the steps is float32
    assert found == (jnp.float32 if averaged else jnp.float64)


def test_gradient_reaches_every_parameter(case):
    """In every block of a stack, and finite; the first y and z of `Recursive` are not trained."""
    logits = jax.eval_shape(lambda p: logits_of(case.run(p, case.inputs)), case.params)
    weights = jax.random.normal(jax.random.key(2), logits.shape)

    def loss(p):
        outputs = case.run(p, case.inputs)
        others = [v for k, v in outputs.items() if k != "logits"] if type(outputs) is dict else []
        fit = (weights * jax.nn.log_softmax(logits_of(outputs))).sum()
        return fit + sum(o.sum() for o in others)

    for path, g in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(case.params)):
        name = jax.tree_util.keystr(path)
        blocks = g if name.startswith("['blocks']") else g[None]
        assert bool(jnp.isfinite(g).all()), name
        least = float(jnp.abs(blocks).reshape(len(blocks), -1).max(axis=1).min())
        frozen = case.name == "Recursive" and "['start']" in name
        assert (least == 0) if frozen else (least > 0), name


def test_parameters_are_plain(case):
    """Dicts and lists of float32 arrays, a pure function of the key."""

    def walk(tree):
        if isinstance(tree, (dict, list)):
            assert type(tree) in (dict, list)
            children = tree.values() if isinstance(tree, dict) else tree
            return [leaf for child in children for leaf in walk(child)]
        assert isinstance(tree, jax.Array) and tree.dtype == jnp.float32
        return [tree]

    leaves = walk(case.params)
    assert len(leaves) == len(jax.tree.leaves(case.params)) > 0
    chex.assert_trees_all_equal(case.params, case.init(jax.random.key(0)))
    other = jax.tree.leaves(case.init(jax.random.key(5)))
    pairs = zip(jax.tree.leaves(case.params), other, strict=True)
    assert any(not np.array_equal(a, b) for a, b in pairs)


def test_no_two_matrices_start_alike(case):
    """Each block of a stack has a draw of its own."""
    firsts = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(case.params):
        name = jax.tree_util.keystr(path)
        if "kernel" in name or ("weight" in name and "norm" not in name):
            blocks = leaf if name.startswith("['blocks']") else leaf[None]
            firsts += [float(block.ravel()[0]) for block in blocks]
    assert len(firsts) == len(set(firsts)) > 1


def test_names_are_distinct_and_sorted_by_depth(case):
    names = case.model.names
    assert len(names) == len(set(names)) == case.exits and list(names) == sorted(names)


def test_new_parameters_do_not_recompile(case):
    """Training makes the steps of new parameters at every update."""
    first = case.run(case.params, case.inputs)
    traces = len(case.traces)
    second = case.run(jax.tree.map(lambda a: a * 1.5, case.params), case.inputs)
    assert len(case.traces) == traces >= 1
    assert not np.allclose(logits_of(first), logits_of(second))


def test_equal_settings_make_steps_that_compile_once(case):
    """`dx.runs` builds a model anew for every command; the steps must be equal."""
    again = dataclasses.replace(case.settings).build(case.shape, classes_of(case.name))
    one, other = (jax.tree.structure(m.steps(case.params)) for m in (case.model, again))
    assert one == other


def test_the_engine_takes_it(case):
    """Rows that exit at depths of their own get what `run_all` reads there."""
    model, params, inputs = case.model, case.params, case.inputs
    outputs = case.run(params, inputs)
    depths = np.minimum([2, 1, 5, 3, 4, 1], case.exits)
    criterion = dx.criteria.at_depth(jnp.asarray(depths, jnp.int32))
    state = model.embed(params, inputs)
    exits = dx.run_until(model.steps(params), state, model.depth, criterion, "compacted", tile=2)
    np.testing.assert_array_equal(exits.exit_depth, depths)
    close(exits.output, jax.tree.map(lambda a: a[depths - 1, np.arange(ROWS)], outputs), 1e-4)


@pytest.mark.refuses
@pytest.mark.parametrize("name", MODELS)
def test_wrong_inputs_are_named(name):
    settings, shape = MODELS[name]
    model, inputs = settings.build(shape, classes_of(name)), drawn(shape)
    shapes, tokens = jax.eval_shape(model.init, jax.random.key(0)), isinstance(shape, dx.Tokens)
    params = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
    for wrong in (inputs.astype(jnp.float32) if tokens else inputs[..., :-1], inputs[0]):
        with pytest.raises(ValueError, match="`inputs` must be"):
            model.embed(params, wrong)
    if not tokens:
        with pytest.raises(TypeError, match="`inputs` must be floating point, got uint8"):
            model.embed(params, jnp.zeros(inputs.shape, jnp.uint8))


def test_any_number_of_rows(case):
    """As `dx.export` traces it."""
    shape = (*jax.export.symbolic_shape("b"), *case.inputs.shape[1:])
    inputs = jax.ShapeDtypeStruct(shape, case.inputs.dtype)
    model = case.model
    run = lambda params, x: dx.run_all(model.steps(params), model.embed(params, x), model.depth)
    outputs = logits_of(jax.eval_shape(run, case.params, inputs))
    assert outputs.shape[:2] == (case.exits, shape[0])


@pytest.mark.refuses
@pytest.mark.parametrize("name", MODELS)
def test_data_that_do_not_fit_are_refused(name):
    settings, shape = MODELS[name]
    for classes in (1, 0, 2.0, True):
        with pytest.raises(ValueError, match="`classes` must be an integer of at least 2"):
            settings.build(shape, classes)
    others = [(8,) * 5, ()] if isinstance(shape, dx.Tokens) else [(0, 4)]
    if name != "DeepThinking" and not isinstance(shape, dx.Tokens):
        others.append(dx.Tokens(7, 4))
    for wrong in others:
        assert any(sentence.startswith("inputs must") for sentence in settings.fits(wrong, 2))
        with pytest.raises(ValueError, match=f"`{name}`: inputs must"):
            settings.build(wrong, 2)


@pytest.mark.refuses
@pytest.mark.parametrize("name", MODELS)
def test_every_number_of_at_least_one_is_checked(name):
    """Each integer field whose default is positive refuses -1 by name."""
    default = getattr(ZOO, name)()
    assert validate(default) == []
    for field in dataclasses.fields(default):
        value = getattr(default, field.name)
        if isinstance(value, int) and not isinstance(value, bool) and field.name != "seed":
            with pytest.raises(ValueError, match=f"`{name}`: {field.name} must"):
                dataclasses.replace(default, **{field.name: -1}).build(*MODELS[name][1:], 5)


def test_constructors_load_no_jax():
    program = f"""
import sys, dynexit as dx
for name in {tuple(MODELS)}:
    model = getattr(dx.models, name)()
    assert model.validate() == [] and hash(model) is not None
    model.fits((8, 8, 1), 10)
assert "jax" not in sys.modules and "flax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
