"""The battery that every backbone must pass: shapes, independent rows, compute type, gradients,
names, plain parameters.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import dynexit as dx
from dynexit.models.distilled.block_recurrent import block_recurrent
from dynexit.models.features import features
from dynexit.models.implicit.equilibrium import equilibrium
from dynexit.models.mlp import mlp
from dynexit.models.recurrent.gru import gru_ponder
from dynexit.models.recurrent.pararnn import para_gru
from dynexit.models.vision.resnet import resnet
from dynexit.models.vision.settings import Vit

ROWS, CLASSES = 6, 5
IMAGE = (12, 8, 2)

BACKBONES = {
    "mlp": (lambda: mlp((3, 4), CLASSES, width=16, depth=3), (3, 4)),
    "vit": (lambda: Vit(patch=4, width=16, depth=2, heads=2).build(IMAGE, CLASSES), IMAGE),
    "resnet": (lambda: resnet(IMAGE, CLASSES, stages=((8, 2), (16, 1))), IMAGE),
    "block_recurrent": (
        lambda: block_recurrent(IMAGE, CLASSES, (2, 1), patch=4, width=16, heads=2),
        IMAGE,
    ),
    "equilibrium": (lambda: equilibrium(IMAGE, CLASSES, patch=2, width=16, steps=3), IMAGE),
    "para_gru": (lambda: para_gru(9, 2, CLASSES, width=8, depth=2), (9, 2)),
    "gru_ponder": (lambda: gru_ponder(6, CLASSES, width=8, steps=3), (6,)),
}


class Case(NamedTuple):
    """A model, its parameters, a batch of different rows, and the compiled network: `run(params,
    inputs)`, `traces` of it.
    """

    model: dx.Model
    params: Any
    inputs: jax.Array
    blocks: int
    init: Callable
    run: Callable
    traces: list


@pytest.fixture(scope="module", params=BACKBONES)
def case(request):
    make, shape = BACKBONES[request.param]
    model, traces = make(), []
    init = jax.jit(model.init)
    scale = jnp.arange(1.0, ROWS + 1).reshape(ROWS, *[1] * len(shape))
    inputs = scale * jax.random.normal(jax.random.key(1), (ROWS, *shape))

    @jax.jit
    def compiled(steps, state):
        """The steps are arguments, as in the engine's own `jax.jit`."""
        traces.append(None)
        return dx.run_all(steps, state, model.depth)

    embed = jax.jit(model.embed)
    run = lambda params, inputs: compiled(model.steps(params), embed(params, inputs))
    return Case(model, init(jax.random.key(0)), inputs, int(np.sum(model.depth)), init, run, traces)


def logits_of(outputs):
    return outputs["logits"] if isinstance(outputs, dict) else outputs


def close(a, b, tolerance=1e-5):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b
    )


def cast(tree, dtype):
    return jax.tree.map(lambda a: a.astype(dtype), tree)


def test_an_output_for_every_block_and_row(case):
    outputs = case.run(case.params, case.inputs)
    assert logits_of(outputs).shape == (case.blocks, ROWS, CLASSES)
    for leaf in jax.tree.leaves(outputs):
        assert (
            leaf.shape[:2] == (case.blocks, ROWS)
            and leaf.dtype == jnp.float32
            and bool(jnp.isfinite(leaf).all())
        )


def test_exits_and_rows_are_all_distinct(case):
    flat = np.asarray(logits_of(case.run(case.params, case.inputs))).reshape(-1, CLASSES)
    apart = np.abs(flat[:, None] - flat[None]).max(-1) + np.eye(len(flat))
    assert apart.min() > 1e-4


def test_outputs_and_features_are_those_of_block_after_block(case):
    """The oracle: a Python loop over stages and blocks."""
    model, params, inputs = case[:3]
    outputs, state, exit = case.run(params, inputs), model.embed(params, inputs), 0
    found = jax.jit(lambda p, x: features(model, p, x))(params, inputs)
    one = jax.jit(lambda step, i, state: step.apply(step.select(i), i, state))
    staged = isinstance(model.depth, tuple)
    steps, depths = (
        (model.steps(params), model.depth) if staged else ((model.steps(params),), (model.depth,))
    )
    for step, depth in zip(steps, depths, strict=True):
        for i in range(depth):
            state, output = one(step, jnp.int32(i), state)
            close(jax.tree.map(lambda a, e=exit: a[e], outputs), output, 1e-4)
            close(found[model.names[exit]], state, 1e-4)
            exit += 1
    assert exit == case.blocks and tuple(found) == model.names


def test_permuting_and_splitting_the_batch_permutes_and_splits_the_result(case):
    outputs = case.run(case.params, case.inputs)
    order = np.array([3, 0, 5, 1, 4, 2])
    close(case.run(case.params, case.inputs[order]), jax.tree.map(lambda a: a[:, order], outputs))
    parts = [case.run(case.params, case.inputs[b : b + 2]) for b in (0, 2, 4)]
    close(jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), *parts), outputs)


def test_one_row_does_not_move_another(case):
    """Not by a bit: row 2 changes, and every other row is what it was."""
    before = logits_of(case.run(case.params, case.inputs))
    after = logits_of(case.run(case.params, case.inputs.at[2].mul(-30.0)))
    moved = np.asarray(jnp.abs(after - before).max(axis=(0, 2)))
    assert moved[2] > 1e-2 and not np.delete(moved, 2).any()


def test_compute_type_is_that_of_the_inputs(case):
    """Half precision in, half precision all the way, near the float32 result; the parameters may be
    of either type.
    """
    model, params, inputs = case.model, case.params, case.inputs / ROWS
    half = cast(inputs, jnp.bfloat16)
    for weights in (params, cast(params, jnp.bfloat16)):
        whole = lambda p, x: (
            model.embed(p, x),
            dx.run_all(model.steps(p), model.embed(p, x), model.depth),
        )
        assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(whole, weights, half))} == {
            jnp.dtype(jnp.bfloat16)
        }
    outputs = logits_of(case.run(cast(params, jnp.bfloat16), half)).astype(jnp.float32)
    expected = logits_of(case.run(params, inputs))
    assert float(jnp.abs(outputs - expected).max()) < 0.05 * float(jnp.abs(expected).max())


def test_gradient_reaches_every_parameter(case):
    """In every block of a stack, and finite."""
    weights = jax.random.normal(jax.random.key(2), (case.blocks, ROWS, CLASSES))

    def loss(p):
        outputs = case.run(p, case.inputs)
        others = (
            [v for k, v in outputs.items() if k != "logits"] if isinstance(outputs, dict) else []
        )
        return (weights * jax.nn.log_softmax(logits_of(outputs))).sum() + sum(
            o.sum() for o in others
        )

    for path, g in jax.tree_util.tree_flatten_with_path(jax.jit(jax.grad(loss))(case.params))[0]:
        name = jax.tree_util.keystr(path)
        blocks = g if name.startswith("['blocks']") else g[None]
        assert bool(jnp.isfinite(g).all()), name
        assert float(jnp.abs(blocks).reshape(len(blocks), -1).max(axis=1).min()) > 0, name


def test_parameters_are_plain(case):
    """Dicts and lists of float32 arrays, drawn by the key: the same key gives the same, another key
    another.
    """

    def walk(tree):
        if isinstance(tree, (dict, list)):
            assert type(tree) in (dict, list)
            return [
                leaf
                for child in (tree.values() if isinstance(tree, dict) else tree)
                for leaf in walk(child)
            ]
        assert isinstance(tree, jax.Array) and tree.dtype == jnp.float32
        return [tree]

    leaves = walk(case.params)
    assert len(leaves) == len(jax.tree.leaves(case.params)) > 0
    jax.tree.map(np.testing.assert_array_equal, case.params, case.init(jax.random.key(0)))
    other = jax.tree.leaves(case.init(jax.random.key(5)))
    assert any(
        not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(case.params), other, strict=True)
    )


def test_no_two_matrices_start_alike(case):
    """Each block of a stack has a draw of its own."""
    firsts = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(case.params)[0]:
        name = jax.tree_util.keystr(path)
        if "kernel" in name:
            firsts += [
                float(block.ravel()[0])
                for block in (leaf if name.startswith("['blocks']") else leaf[None])
            ]
    assert len(firsts) == len(set(firsts)) > 1


def test_names_are_distinct_and_sorted_by_depth(case):
    names = case.model.names
    assert len(names) == len(set(names)) == case.blocks and list(names) == sorted(names)


def test_new_parameters_do_not_recompile(case):
    """Training makes the steps out of new parameters at every update."""
    first = case.run(case.params, case.inputs)
    traces = len(case.traces)
    second = case.run(jax.tree.map(lambda a: a * 1.5, case.params), case.inputs)
    assert len(case.traces) == traces >= 1
    assert not np.allclose(logits_of(first), logits_of(second))


def test_the_engine_takes_it(case):
    """Rows that leave at depths of their own get what `run_all` read there."""
    model, params, inputs = case[:3]
    outputs = case.run(params, inputs)
    depths = np.minimum([2, 1, 5, 3, 4, 1], case.blocks)
    criterion = dx.criteria.at_depth(jnp.asarray(depths, jnp.int32))
    halted = dx.run_until(
        model.steps(params),
        model.embed(params, inputs),
        model.depth,
        criterion,
        "compacted",
        tile=2,
    )
    np.testing.assert_array_equal(halted.exit_depth, depths)
    close(halted.output, jax.tree.map(lambda a: a[depths - 1, np.arange(ROWS)], outputs), 1e-4)


def test_wrong_inputs_are_named(case):
    model, params, inputs = case[:3]
    for wrong in (inputs[..., :-1], inputs[0]):
        with pytest.raises(ValueError, match=r"`inputs` must be \w+ of shape \[B, .*\], got \["):
            model.embed(params, wrong)
    with pytest.raises(
        TypeError, match="`inputs` must be floating point, got uint8; scale them first"
    ):
        model.embed(params, jnp.zeros(inputs.shape, jnp.uint8))


def test_any_number_of_rows(case):
    """As `dx.export` traces it."""
    inputs = jax.ShapeDtypeStruct(
        (*jax.export.symbolic_shape("b"), *case.inputs.shape[1:]), case.inputs.dtype
    )
    run = lambda params, inputs: dx.run_all(
        case.model.steps(params), case.model.embed(params, inputs), case.model.depth
    )
    outputs = jax.eval_shape(run, case.params, inputs)
    assert logits_of(outputs).shape == (case.blocks, inputs.shape[0], CLASSES)
