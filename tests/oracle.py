"""The oracle of the engine: one row at a time, one block at a time, in Python; and the random
problems it is tried on.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import dynexit as dx


class Problem(NamedTuple):
    """A network with `steps` and `depth` as `run_until` takes them, and a batch."""

    step: Any
    depth: Any
    state: Any
    exits: int


WIDTH, CLASSES = 6, 5


def block(p, h):
    return {
        "x": h["x"] + jnp.tanh(h["x"] @ p["w"] + h["bias"][:, None, :]),
        "bias": h["bias"] * 0.9,
    }


def head(p, h):
    pooled = h["x"].mean(axis=1)
    return {
        "logits": pooled @ p["out"],
        "hidden": pooled,
        "gate": pooled[:, 0],
        "halt_logit": pooled[:, 1] - 0.5,
    }


def halve(p, h):
    """A block that changes the state's shape: half the tokens."""
    return {"x": jnp.tanh(h["x"][:, ::2] @ p["w"]), "bias": h["bias"][:, :WIDTH]}


def parameters(key, blocks):
    keys = jax.random.split(key, 2)
    return {
        "w": jax.random.normal(keys[0], (blocks, WIDTH, WIDTH)) * 0.6,
        "out": jax.random.normal(keys[1], (blocks, WIDTH, CLASSES)) * 2.0,
    }


def batch_of(key, rows):
    keys = jax.random.split(key, 2)
    return {
        "x": jax.random.normal(keys[0], (rows, 4, WIDTH)),
        "bias": jax.random.normal(keys[1], (rows, WIDTH)),
    }


def homogeneous(rows=13, blocks=6, seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    return Problem(
        dx.stacked_step(block, head, parameters(keys[0], blocks)),
        blocks,
        batch_of(keys[1], rows),
        blocks,
    )


def switched(rows=13, blocks=4, seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    params = parameters(keys[0], blocks)
    each = [jax.tree.map(lambda a, i=i: a[i], params) for i in range(blocks)]
    return Problem(dx.switched_step(block, head, each), blocks, batch_of(keys[1], rows), blocks)


def tied(rows=13, blocks=9, seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    params = jax.tree.map(lambda a: a[0], parameters(keys[0], 1))
    return Problem(dx.tied_step(block, head, params), blocks, batch_of(keys[1], rows), blocks)


def staged(rows=13, seed=0):
    """Two blocks, one that halves the tokens, three blocks, another halving: exits follow each."""
    keys = jax.random.split(jax.random.key(seed), 2)
    params = parameters(keys[0], 7)
    part = lambda low, high: jax.tree.map(lambda a: a[low:high], params)
    steps = [
        dx.stacked_step(block, head, part(0, 2)),
        dx.stacked_step(halve, head, part(2, 3)),
        dx.stacked_step(block, head, part(3, 6)),
        dx.stacked_step(halve, head, part(6, 7)),
    ]
    return Problem(steps, [2, 1, 3, 1], batch_of(keys[1], rows), 7)


def row_of(tree, b):
    return jax.tree.map(lambda a: a[b : b + 1], tree)


apply = jax.jit(lambda step, i, state: step.apply(step.select(i), i, state))
update = jax.jit(lambda criterion, i, output, memory: criterion.update(i, output, memory))


class Row(NamedTuple):
    output: Any
    exit: int
    depth: int
    state: Any
    memory: Any
    nan_exits: int


def run_row(problem, criterion, b):
    """Row b alone, exit by exit: the definition of what an early exit is."""
    rows = jax.tree.leaves(problem.state)[0].shape[0]
    steps, depths = (
        (problem.step, problem.depth)
        if isinstance(problem.step, list)
        else ([problem.step], [problem.depth])
    )
    state, memory = row_of(problem.state, b), None
    exit, nans, blocks = 0, 0, 0
    for step, depth in zip(steps, depths, strict=True):
        for i in range(depth // step.blocks):
            state, output = apply(step, jnp.int32(i), state)
            blocks += step.blocks
            if memory is None:
                shapes = jax.tree.map(
                    lambda a: jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype), output
                )
                memory = row_of(criterion.init(rows, shapes), b)
            halt, memory = update(criterion, jnp.int32(exit), output, memory)
            nan = any(bool(np.isnan(np.asarray(leaf)).any()) for leaf in jax.tree.leaves(output))
            nans += nan
            if (bool(halt[0]) and not nan) or exit == problem.exits - 1:
                return Row(output, exit, blocks, state, memory, nans)
            exit += 1
    raise AssertionError("the last exit takes everyone")


def run_rows(problem, criterion):
    """All rows, one after the other."""
    rows = jax.tree.leaves(problem.state)[0].shape[0]
    return [run_row(problem, criterion, b) for b in range(rows)]


def assert_equal(halted, expected, check_state=True, tolerance=1e-5):
    """`halted` holds what the oracle found, row by row."""
    np.testing.assert_array_equal(halted.exit, [r.exit for r in expected])
    np.testing.assert_array_equal(halted.exit_depth, [r.depth for r in expected])
    np.testing.assert_array_equal(halted.nan_exits, [r.nan_exits for r in expected])
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)
    for field in ("output", "memory") + (("state",) if check_state else ()):
        for b, row in enumerate(expected):
            got = row_of(getattr(halted, field), b)
            jax.tree.map(close, got, getattr(row, field))


def leave_at(depths):
    """A criterion that gives row b `depths[b]` exits: what heterogeneous depth looks like when it
    is known beforehand.
    """
    return dx.criteria.at_depth(jnp.asarray(depths, jnp.int32))
